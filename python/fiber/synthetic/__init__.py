"""Synthetic data sets: scenes of shapes and compositions of stamps, with annotation files."""
