"""Checkpoints: everything between a path and a loaded network."""
