"""Masked words, and statements about two pictures (NLVR2)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from fiber.metrics.matching import mean

#: Label of a token that was not picked.
IGNORED = -100


def masked_word_accuracy(predicted: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """How many of the picked tokens are named.

    Args:
        predicted: token ids, of any shape.
        labels: the original ids, of the same shape; -100 where a token was not picked.

    Returns:
        `accuracy` over the picked tokens.

    Raises:
        ValueError: if the shapes differ.
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.shape != labels.shape:
        raise ValueError(
            f"predicted tokens have shape {predicted.shape}, labels {labels.shape}; expected equal"
        )
    picked = labels != IGNORED
    return {"accuracy": mean(predicted[picked] == labels[picked])}


def statement_accuracy(
    predicted: ArrayLike, truths: ArrayLike, sentences: Sequence[Hashable]
) -> dict[str, float]:
    """NLVR2's two numbers.

    Args:
        predicted: (n,) whether the statement was called true.
        truths: (n,) whether it is.
        sentences: (n,) what makes a statement the same: its text or `sentence_key`.

    Returns:
        `accuracy`, and `consistency`: of the different sentences, the part for which every pair of
        pictures was answered rightly.

    Raises:
        ValueError: if the lengths differ.

    Source: NLVR2 (Suhr et al. 2019) and its evaluation script.
    """
    right = np.asarray(predicted).astype(bool) == np.asarray(truths).astype(bool)
    if right.shape != (len(sentences),):
        raise ValueError(
            f"statements have {right.shape} answers for {len(sentences)} sentences; expected (n,)"
        )
    always: dict[Hashable, bool] = {}
    for sentence, is_right in zip(sentences, right.tolist(), strict=True):
        always[sentence] = always.get(sentence, True) and is_right
    return {"accuracy": mean(right), "consistency": mean(np.array(list(always.values())))}


def sentence_key(identifier: str) -> str:
    """Name the sentence of an NLVR2 identifier `split-set-pair-sentence`: all but the pair.

    Raises:
        ValueError: if the identifier has fewer than four parts.
    """
    parts = identifier.split("-")
    if len(parts) < 4:
        raise ValueError(
            f"NLVR2 identifier {identifier!r} has {len(parts)} parts; expected"
            " split-set-pair-sentence"
        )
    return "-".join([*parts[:2], *parts[3:]])
