"""Image-text retrieval recall, with any number of texts per image.

An image is a hit if any of its texts is among its k best candidates; a text is a hit if its image
is among its k best candidates. Shapes: P images, T texts.

Source: the retrieval protocol of FIBER (Dou et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiber.metrics.matching import mean


def recall_of_ranks(
    image_ranks: ArrayLike, text_ranks: ArrayLike, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Compute `image_to_text_recall_at_{k}` and `text_to_image_recall_at_{k}`.

    Ranks come from `wrong_before`: (P,) for images with at least one text, (T,) for texts.
    """
    names = (("image_to_text", image_ranks), ("text_to_image", text_ranks))
    return {
        f"{name}_recall_at_{k}": mean(np.asarray(ranks) < k) for name, ranks in names for k in ks
    }


def wrong_before(scores: ArrayLike, right: ArrayLike) -> NDArray[np.int64]:
    """Count the wrong candidates that score at least as high as the best correct one.

    On ties, wrong candidates rank first, so a model with constant scores has recall 0.

    Args:
        scores: (n, m) scores of m candidates for n queries, higher is more similar.
        right: (n, m) bool, True = correct candidate.

    Returns:
        (n,) int64; m if all are wrong.

    Raises:
        ValueError: if the shapes differ, or a score is NaN.
    """
    scores, right = np.asarray(scores), np.asarray(right, dtype=bool)
    if scores.ndim != 2 or scores.shape != right.shape:
        raise ValueError(
            f"retrieval scores have shape {scores.shape}, right {right.shape}; expected both to"
            " have shape (n, m)"
        )
    if np.isnan(scores).any():
        raise ValueError("retrieval scores contain NaN; expected numbers")
    best = np.where(right, scores, -np.inf).max(1, initial=-np.inf)
    return ((scores >= best[:, None]) & ~right).sum(1)


def reranked(ranks: ArrayLike, scores: ArrayLike, right: ArrayLike) -> NDArray[np.int64]:
    """Update (n,) ranks with new (n, k) scores for the k best candidates of each query.

    A query without a correct candidate among the k keeps its rank.

    Source: ALBEF (Li et al. 2021), retrieval evaluation.
    """
    found = np.asarray(right, dtype=bool).any(1)
    return np.where(found, wrong_before(scores, right), ranks)
