"""Checkpoints of a training run: format, tensors, and writing in the background."""
