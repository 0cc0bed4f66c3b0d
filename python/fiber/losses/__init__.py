"""Losses, as named unweighted scalars whose divisors are summed over all ranks."""
