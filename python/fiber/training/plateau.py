"""When a run that is measured slows down, and when it ends, by its scores so far.

Both depend on the scores alone, which a checkpoint keeps: a resumed run goes on as one that was
never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: A score is better than another one if it is higher by this part of it (PyTorch's default).
THRESHOLD = 1e-4


def count_falls(scores: Sequence[float], patience: int) -> int:
    """Count how often the learning rate has fallen: after more than `patience` scores in a row that
    are no better than the best one, anew after each fall.

    Args:
        scores: of the measurements so far, in order; higher is better.
        patience: scores in a row that may be no better.

    Source: PyTorch's ReduceLROnPlateau in its mode "max", as in published fine-tuning on ODinW.
    """
    best, in_a_row, falls = -math.inf, 0, 0
    for score in scores:
        if score > best * (1 + THRESHOLD):
            best, in_a_row = score, 0
        else:
            in_a_row += 1
        if in_a_row > patience:
            falls, in_a_row = falls + 1, 0
    return falls


def has_stalled(scores: Sequence[float], limit: int) -> bool:
    """Whether the last `limit` scores are all below the best one before them; a limit of 0 is none.

    A score that equals the best one begins the count anew, as in published fine-tuning.
    """
    best, in_a_row = -math.inf, 0
    for score in scores:
        if score < best:
            in_a_row += 1
        else:
            best, in_a_row = score, 0
    return 0 < limit <= in_a_row
