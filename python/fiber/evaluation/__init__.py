"""Evaluate a model on a dataset split: metrics, and predictions in official file formats."""
