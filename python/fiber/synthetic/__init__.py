"""Synthetic datasets: scenes of shapes and compositions of stamps, with annotation files."""
