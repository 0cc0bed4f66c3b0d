"""Masks of classes and phrases, and captions of regions."""
