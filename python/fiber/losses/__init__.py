"""Losses: named scalars without weights; every divisor counts over all ranks."""
