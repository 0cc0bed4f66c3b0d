"""A model family and a task for fiber."""
