"""Retrieval: does a picture find its texts, and a text its picture?

Letters: P pictures, T texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiber.metrics.matching import mean


def recall_at_k(
    scores: ArrayLike, text_image_index: ArrayLike, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall at k both ways, with any number of texts for a picture.

    A picture counts as found when any of its texts is among its k best; a text when its picture
    is. An equal score counts as a better one, so that a model that scores everything alike finds
    nothing.

    Args:
        scores: (P, T), higher is more alike.
        text_image_index: (T,) the picture that each text belongs to.
        ks: numbers of candidates that are looked at.

    Returns:
        `image_to_text_recall_at_{k}` over the pictures that have a text, and
        `text_to_image_recall_at_{k}` over the texts.

    Raises:
        ValueError: if the shapes do not fit together, a picture's number is out of range, or a
            score is NaN.

    Source: the retrieval protocol of FIBER (Dou et al. 2022).
    """
    scores, owners = np.asarray(scores), np.asarray(text_image_index, dtype=np.int64)
    check_owners(owners, scores.shape)
    own = owners == np.arange(len(scores))[:, None]
    return recall_of_ranks(wrong_before(scores, own)[own.any(1)], wrong_before(scores.T, own.T), ks)


def recall_of_ranks(
    image_ranks: ArrayLike, text_ranks: ArrayLike, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """`recall_at_k`, where it is known how many wrong candidates come before the right one.

    Args:
        image_ranks: (P,) of the pictures that have a text, as `wrong_before` counts.
        text_ranks: (T,) of the texts.
        ks: numbers of candidates that are looked at.
    """
    names = (("image_to_text", image_ranks), ("text_to_image", text_ranks))
    return {
        f"{name}_recall_at_{k}": mean(np.asarray(ranks) < k) for name, ranks in names for k in ks
    }


def wrong_before(scores: ArrayLike, right: ArrayLike) -> NDArray[np.int64]:
    """Count the wrong candidates that score at least as high as the best right one.

    Args:
        scores: (n, m) of m candidates for each of n queries, higher is more alike.
        right: (n, m) bool, which of them are right.

    Returns:
        (n,); where no candidate is right, the number of candidates.

    Raises:
        ValueError: if the shapes differ, or a score is NaN.
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
    """Count `wrong_before` anew after the k best candidates of each query were scored again.

    A query whose right candidates are all behind the k best keeps its rank.

    Args:
        ranks: (n,) wrong candidates before the best right one, by the first scores.
        scores: (n, k) new scores of the k best candidates.
        right: (n, k) bool, which of them are right.

    Source: ALBEF (Li et al. 2021), evaluation of retrieval.
    """
    found = np.asarray(right, dtype=bool).any(1)
    return np.where(found, wrong_before(scores, right), ranks)


def check_owners(owners: NDArray[np.int64], shape: tuple[int, ...]) -> None:
    """Check the picture of each text against the shape (P, T) of the scores."""
    if len(shape) != 2 or owners.shape != (shape[1],):
        raise ValueError(
            f"retrieval scores have shape {shape}, text_image_index {owners.shape};"
            " expected (pictures, texts) and (texts,)"
        )
    if owners.size and not 0 <= owners.min() <= owners.max() < shape[0]:
        raise ValueError(
            f"text_image_index runs from {owners.min()} to {owners.max()};"
            f" expected numbers of the {shape[0]} pictures"
        )
