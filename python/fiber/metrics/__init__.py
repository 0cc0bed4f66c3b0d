"""Metrics: pure functions of arrays and lists.

Each returns a dict of floats in [0, 1], except `cider_d` in [0, 10]; a metric of no samples is NaN.
`baselines` and `box_baselines` return the same keys for random guesses and for guesses without the
image. Modules import without torch; box overlaps load torchvision when they are called.
"""
