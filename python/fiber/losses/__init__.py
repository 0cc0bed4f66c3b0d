"""Losses: unweighted scalars, normalized by counts over all ranks."""
