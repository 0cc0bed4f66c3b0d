"""Entropy of a yes-or-no variable: the loss of the best constant prediction."""

from __future__ import annotations

import math


def entropy(probability: float) -> float:
    """Return the entropy of a Bernoulli variable, in nats."""
    if probability in (0, 1):
        return 0.0
    other = 1 - probability
    return -probability * math.log(probability) - other * math.log(other)
