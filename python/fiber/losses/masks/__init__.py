"""Losses of masks, regions and phrases, and their matching."""
