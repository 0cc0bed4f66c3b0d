"""Evaluation: the metric of a model on a split, and predictions in official formats."""
