"""Contrast, matching and masked words of images and captions."""
