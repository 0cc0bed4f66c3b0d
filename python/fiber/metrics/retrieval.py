"""Retrieval: does a picture find its texts, and a text its picture?

Letters: P pictures, T texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
    if np.isnan(scores).any():
        raise ValueError("retrieval scores hold NaN; expected numbers")
    image_ranks, text_ranks = _ranks(scores, owners)
    names = (("image_to_text", image_ranks), ("text_to_image", text_ranks))
    return {
        f"{name}_recall_at_{k}": float(np.mean(ranks < k)) if len(ranks) else float("nan")
        for name, ranks in names
        for k in ks
    }


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


def _ranks(
    scores: NDArray[np.floating], owners: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many wrong candidates come before the right one: of pictures with texts, and of texts."""
    pictures, texts = scores.shape
    own = scores[owners, np.arange(texts)]
    # The right picture itself is one of those that score at least as high.
    text_ranks = (scores >= own).sum(0) - 1
    best = np.full(pictures, -np.inf, dtype=scores.dtype)
    np.maximum.at(best, owners, own)
    own_before = np.bincount(owners[own == best[owners]], minlength=pictures)
    image_ranks = (scores >= best[:, None]).sum(1) - own_before
    has_text = np.bincount(owners, minlength=pictures) > 0
    return image_ranks[has_text], text_ranks
