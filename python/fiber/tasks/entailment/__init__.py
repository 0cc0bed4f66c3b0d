"""Hypotheses that an image entails or contradicts (SNLI-VE)."""
