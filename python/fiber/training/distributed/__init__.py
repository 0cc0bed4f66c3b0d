"""Data-parallel training: ranks, collectives, gradients, signals."""
