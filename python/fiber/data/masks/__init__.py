"""Masks of records, as they are stored."""
