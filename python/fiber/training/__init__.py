"""Training and evaluation: configuration, loop, checkpoints, metrics of a model on a dataset."""
