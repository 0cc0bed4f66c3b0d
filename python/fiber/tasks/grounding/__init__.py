"""Boxes of phrases, expressions and class names."""
