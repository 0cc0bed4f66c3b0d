"""Image-text matching (ITM) and Winoground metrics."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def matching_accuracy(
    scores: ArrayLike, labels: ArrayLike, threshold: float = 0.5
) -> dict[str, float]:
    """Compute ITM accuracy and AUC for n pairs; labels are 1 for a match, else 0.

    Scores above the threshold predict a match.

    Returns:
        `accuracy`; `match_accuracy` and `mismatch_accuracy`, the accuracy for each label; `auc`,
        the probability that a matching pair scores above a mismatched one (ties count as one half).

    Raises:
        ValueError: if the shapes differ.
    """
    scores, truths = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(bool)
    if scores.ndim != 1 or scores.shape != truths.shape:
        raise ValueError(
            f"matching scores have shape {scores.shape}, labels {truths.shape}; expected both to"
            " have shape (n,)"
        )
    right = (scores > threshold) == truths
    return {
        "accuracy": mean(right),
        "match_accuracy": mean(right[truths]),
        "mismatch_accuracy": mean(right[~truths]),
        "auc": _auc(scores[truths], scores[~truths]),
    }


def swapped_accuracy(scores: ArrayLike) -> dict[str, float]:
    """Compute Winoground's `text`, `image` and `group` scores.

    `text` is the fraction of examples in which each image scores highest with its own text, `image`
    the fraction in which each text scores highest with its own image, and `group` the fraction in
    which both hold. Ties count as wrong.

    Args:
        scores: (n, 2, 2), indexed by [example, text, image]; text i matches image i.

    Raises:
        ValueError: if `scores` is not (n, 2, 2).

    Source: Winoground (Thrush et al. 2022) 3.3.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 3 or scores.shape[1:] != (2, 2):
        raise ValueError(f"swapped scores have shape {scores.shape}; expected (n, 2, 2)")
    own = np.diagonal(scores, axis1=1, axis2=2)
    text = (own[:, 0] > scores[:, 1, 0]) & (own[:, 1] > scores[:, 0, 1])
    image = (own[:, 0] > scores[:, 0, 1]) & (own[:, 1] > scores[:, 1, 0])
    return {"text": mean(text), "image": mean(image), "group": mean(text & image)}


def mean(values: NDArray) -> float:
    """Average (n,) values; return NaN without a warning if n = 0."""
    return float(np.mean(values)) if len(values) else float("nan")


def _auc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    if not len(positive) or not len(negative):
        return float("nan")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left")
    not_above = np.searchsorted(ordered, positive, "right")
    return float((below + not_above).sum() / (2 * len(positive) * len(negative)))
