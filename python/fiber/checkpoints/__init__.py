"""Reading, writing and conversion of checkpoints."""
