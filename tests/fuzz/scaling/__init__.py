"""Check that readers do work in proportion to the size of what they read."""
