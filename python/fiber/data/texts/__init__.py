"""Texts that are drawn for a sample beside its own."""
