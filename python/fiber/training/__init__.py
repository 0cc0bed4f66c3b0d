"""Training: configuration, data, objectives, optimizer, training loop and checkpoints."""
