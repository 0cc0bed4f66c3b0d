"""Bulk use: one model over many images, and search in the result."""
