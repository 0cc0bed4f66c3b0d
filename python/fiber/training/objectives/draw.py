"""Keys of the random numbers of training steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Draw:
    """Key of a micro-batch's random numbers: the run's seed and the micro-batch's index.

    It is the same on every rank.
    """

    seed: int
    number: int
