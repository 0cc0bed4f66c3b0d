"""Shared by all operations: dispatch, launches, tile sizes and their tuning, scratch memory."""
