"""Losses: named, unweighted scalars; every divisor is summed over all ranks."""
