"""Metrics: pure functions over arrays and lists that return named numbers.

Every metric returns a dict of floats, fractions in [0, 1] but for `cider_d`, which goes up to 10;
what nothing was measured on is NaN.
`baselines` and `box_baselines` return the same names for guessing by chance and for guessing
without the picture, so that a table can put them side by side. Nothing here needs torch.
"""
