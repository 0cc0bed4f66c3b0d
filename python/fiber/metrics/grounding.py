"""Grounding: is the box that a phrase gets the right one?

Predictions of a phrase are boxes sorted from best to worst. Boxes are half-open xyxy, in pixels or
in units of the picture's sides, predictions and truths alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiber.metrics.boxes import as_boxes, pairwise_giou, pairwise_iou
from fiber.metrics.matching import mean

#: Least overlap of a box that counts as found.
FOUND_AT = 0.5
#: Rank of a box that is found by none of the predictions.
NEVER = np.iinfo(np.int64).max


def referring_accuracy(
    predicted: Sequence[ArrayLike], truths: ArrayLike, ks: Sequence[int] = (1,)
) -> dict[str, float]:
    """RefCOCO: is the one box that an expression means among the k best?

    Args:
        predicted: for each of n expressions (m, 4) boxes, best first; none is a miss.
        truths: (n, 4) boxes.
        ks: numbers of predictions that are looked at.

    Returns:
        `accuracy_at_{k}` with IoU >= 0.5, as everyone reports it, and `giou_accuracy_at_{k}` with
        GIoU >= 0.5, as FIBER's published code (after MDETR's) computes it: GIoU is never above IoU,
        so that the second is never above the first.

    Raises:
        ValueError: if the numbers of expressions differ.
    """
    truths = as_boxes(truths)
    _check_counts(len(predicted), len(truths))
    pairs = [(as_boxes(boxes), truth[None]) for boxes, truth in zip(predicted, truths, strict=True)]
    iou_ranks = np.array([first_hit(pairwise_iou(*pair)) for pair in pairs], dtype=np.int64)
    giou_ranks = np.array([first_hit(pairwise_giou(*pair)) for pair in pairs], dtype=np.int64)
    results = {f"accuracy_at_{k}": mean(iou_ranks < k) for k in ks}
    return results | {f"giou_accuracy_at_{k}": mean(giou_ranks < k) for k in ks}


def phrase_recall(
    predicted: Sequence[ArrayLike],
    truths: Sequence[ArrayLike],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Flickr30k Entities: recall at k of phrases that may mean several boxes.

    Args:
        predicted: for each of n phrases (m, 4) boxes, best first; none is a miss.
        truths: for each phrase (g, 4) boxes, at least one.
        ks: numbers of predictions that are looked at.

    Returns:
        `any_recall_at_{k}`: one of the k best has IoU >= 0.5 with any of the phrase's boxes;
        `merged_recall_at_{k}`: with the box around all of them; `any_upper_bound` and
        `merged_upper_bound`: the same with all predictions.

    Raises:
        ValueError: if the numbers of phrases differ, or a phrase has no box (protocols leave such
            phrases out beforehand).

    Source: FIBER's published evaluation (after MDETR): ANY-BOX, and `merged`.
    """
    _check_counts(len(predicted), len(truths))
    ranks: dict[str, list[int]] = {"any": [], "merged": []}
    for number, (boxes, own) in enumerate(zip(predicted, truths, strict=True)):
        own = as_boxes(own)
        if not len(own):
            raise ValueError(f"phrase {number} has no true box; expected at least one")
        ranks["any"].append(first_hit(pairwise_iou(boxes, own)))
        ranks["merged"].append(first_hit(pairwise_iou(boxes, merged(own))))
    results = {}
    for name, values in ranks.items():
        array = np.array(values, dtype=np.int64)
        results |= {f"{name}_recall_at_{k}": mean(array < k) for k in ks}
        results[f"{name}_upper_bound"] = mean(array < NEVER)
    return results


def merged(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The (1, 4) box around all of (g, 4) boxes."""
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])[None]


def first_hit(overlaps: NDArray[np.float64]) -> int:
    """Rank, from 0, of the first row of (m, g) overlaps that reaches FOUND_AT; NEVER if none."""
    hits = np.flatnonzero((overlaps >= FOUND_AT).any(1))
    return int(hits[0]) if len(hits) else int(NEVER)


def _check_counts(predicted: int, truths: int) -> None:
    if predicted != truths:
        raise ValueError(f"got predictions for {predicted} phrases; expected {truths}")
