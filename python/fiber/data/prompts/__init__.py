"""Prompts of the detector: class lists, captions, sampling in training."""
