"""Metrics for MLM and NLVR2."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from fiber.messages import shown
from fiber.metrics.matching import mean

#: Label of ignored tokens.
IGNORED = -100


def masked_word_accuracy(predicted: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Compute MLM `accuracy` over all labels except -100.

    Raises:
        ValueError: if the shapes differ.
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.shape != labels.shape:
        raise ValueError(
            f"predicted tokens have shape {predicted.shape}, labels {labels.shape}; expected the"
            " same shape"
        )
    picked = labels != IGNORED
    return {"accuracy": mean(predicted[picked] == labels[picked])}


def statement_accuracy(
    predicted: ArrayLike, truths: ArrayLike, sentences: Sequence[Hashable]
) -> dict[str, float]:
    """Compute NLVR2 `accuracy` and `consistency`.

    Consistency is the fraction of distinct sentences that are classified correctly for all their
    image pairs. `sentences` holds the text or `sentence_key` of each of the n statements.

    Raises:
        ValueError: if the lengths differ.

    Source: NLVR2 (Suhr et al. 2019) and its evaluation script.
    """
    right = np.asarray(predicted).astype(bool) == np.asarray(truths).astype(bool)
    if right.shape != (len(sentences),):
        raise ValueError(
            f"predictions have shape {right.shape}; expected ({len(sentences)},), one per sentence"
        )
    always: dict[Hashable, bool] = {}
    for sentence, is_right in zip(sentences, right.tolist(), strict=True):
        always[sentence] = always.get(sentence, True) and is_right
    return {"accuracy": mean(right), "consistency": mean(np.array(list(always.values())))}


def sentence_key(identifier: str) -> str:
    """Remove the pair number from an NLVR2 identifier `split-set-pair-sentence`.

    Raises:
        ValueError: if the identifier has fewer than four parts.
    """
    parts = identifier.split("-")
    if len(parts) < 4:
        raise ValueError(
            f"NLVR2 identifier {shown(identifier)} has {len(parts)} parts; expected"
            " split-set-pair-sentence"
        )
    return "-".join([*parts[:2], *parts[3:]])
