"""Losses of training tasks, and the order in which they are computed."""
