"""Losses of masks: matching, points, classes, phrases and captions."""
