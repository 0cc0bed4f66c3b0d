"""Code shared by all operations: dispatch, launches, tile sizes and tuning, scratch memory."""
