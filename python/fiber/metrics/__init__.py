"""Metrics: pure functions of arrays and lists.

Each returns a dict of floats in [0, 1], except `cider_d` in [0, 10]; a metric over no samples is
NaN. `fiber.evaluation.baselines` and `box_baselines` return the same keys for random guesses and
for guesses that ignore the image. Torch is not imported until a box overlap is computed.
"""
