"""Callbacks, trackers and timing of a training run."""
