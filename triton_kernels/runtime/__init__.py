"""Code shared by all operations: dispatch, launches, tile sizes, tuning and scratch memory."""
