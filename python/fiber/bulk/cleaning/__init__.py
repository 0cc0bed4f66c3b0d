"""Cleaning a dataset: near-duplicates, texts that do not fit their images, and what is kept."""
