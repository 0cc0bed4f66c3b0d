"""What all operations share: dispatch, launches, tile sizes and their tuning, scratch memory."""
