"""Read, write and convert checkpoints."""
