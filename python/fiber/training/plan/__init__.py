"""Cost of a run on a cluster: FLOPs, memory, bytes, checkpoints."""
