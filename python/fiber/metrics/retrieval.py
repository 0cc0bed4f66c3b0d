"""Image-text retrieval recall.

Letters: P images, T texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiber.metrics.matching import mean


def recall_at_k(
    scores: ArrayLike, text_image_index: ArrayLike, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Compute recall at k in both directions, with any number of texts per image.

    An image is a hit if any of its texts is among its k best; a text if its image is. A wrong
    candidate with an equal score ranks first, so a model with constant scores has recall 0.

    Args:
        scores: (P, T), higher is more similar.
        text_image_index: (T,) image of each text.
        ks: Numbers of candidates considered.

    Returns:
        `image_to_text_recall_at_{k}` over images with a text, and `text_to_image_recall_at_{k}`
        over texts.

    Raises:
        ValueError: If the shapes do not match, an image index is out of range, or a score is NaN.

    Source: the retrieval protocol of FIBER (Dou et al. 2022).
    """
    scores, owners = np.asarray(scores), np.asarray(text_image_index, dtype=np.int64)
    check_owners(owners, scores.shape)
    own = owners == np.arange(len(scores))[:, None]
    return recall_of_ranks(wrong_before(scores, own)[own.any(1)], wrong_before(scores.T, own.T), ks)


def recall_of_ranks(
    image_ranks: ArrayLike, text_ranks: ArrayLike, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Compute `recall_at_k` from ranks.

    Args:
        image_ranks: (P,) from `wrong_before`, of images with a text.
        text_ranks: (T,) from `wrong_before`.
        ks: Numbers of candidates considered.
    """
    names = (("image_to_text", image_ranks), ("text_to_image", text_ranks))
    return {
        f"{name}_recall_at_{k}": mean(np.asarray(ranks) < k) for name, ranks in names for k in ks
    }


def wrong_before(scores: ArrayLike, right: ArrayLike) -> NDArray[np.int64]:
    """Rank from 0 of the best right candidate: wrong ones with at least its score.

    Args:
        scores: (n, m) scores of m candidates of n queries, higher is more similar.
        right: (n, m) bool, True for right candidates.

    Returns:
        (n,) int64; m if no candidate is right.

    Raises:
        ValueError: If the shapes differ, or a score is NaN.
    """
    scores, right = np.asarray(scores), np.asarray(right, dtype=bool)
    if scores.ndim != 2 or scores.shape != right.shape:
        raise ValueError(
            f"retrieval scores have shape {scores.shape}, right {right.shape}; expected both (n, m)"
        )
    if np.isnan(scores).any():
        raise ValueError("retrieval scores hold NaN; expected numbers")
    best = np.where(right, scores, -np.inf).max(1, initial=-np.inf)
    return ((scores >= best[:, None]) & ~right).sum(1)


def reranked(ranks: ArrayLike, scores: ArrayLike, right: ArrayLike) -> NDArray[np.int64]:
    """Update ranks after the k best candidates of each query were rescored.

    A query without a right candidate among the k keeps its rank.

    Args:
        ranks: (n,) from `wrong_before`, by the first scores.
        scores: (n, k) new scores of the k best candidates.
        right: (n, k) bool, True for right candidates.

    Source: ALBEF (Li et al. 2021), evaluation of retrieval.
    """
    found = np.asarray(right, dtype=bool).any(1)
    return np.where(found, wrong_before(scores, right), ranks)


def check_owners(owners: NDArray[np.int64], shape: tuple[int, ...]) -> None:
    """Check the image index of each text against the shape (P, T) of the scores."""
    if len(shape) != 2 or owners.shape != (shape[1],):
        raise ValueError(
            f"retrieval scores have shape {shape}, text_image_index {owners.shape};"
            " expected (images, texts) and (texts,)"
        )
    if owners.size and not 0 <= owners.min() <= owners.max() < shape[0]:
        raise ValueError(
            f"text_image_index runs from {owners.min()} to {owners.max()};"
            f" expected indices of {shape[0]} images"
        )
