"""Detector prompts: class lists, captions, and sampling for training."""
