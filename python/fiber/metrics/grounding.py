"""Grounding metrics: RefCOCO accuracy and Flickr30k Entities recall.

Predictions of a phrase are boxes sorted from best to worst. Predicted and ground-truth boxes are
half-open xyxy, both in pixels or both relative to the image size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiber.metrics.boxes import as_boxes, pairwise_giou, pairwise_iou
from fiber.metrics.matching import mean

#: Minimum overlap of a hit.
FOUND_AT = 0.5
#: Rank if no prediction is a hit.
NEVER = np.iinfo(np.int64).max


def referring_accuracy(
    predicted: Sequence[ArrayLike], truths: ArrayLike, ks: Sequence[int] = (1,)
) -> dict[str, float]:
    """Compute RefCOCO accuracy: a hit among the k best boxes of an expression.

    Args:
        predicted: (M, 4) boxes of each of n expressions, best first; no boxes are a miss.
        truths: (n, 4) boxes.
        ks: Numbers of predictions considered.

    Returns:
        `accuracy_at_{k}` with IoU >= 0.5, as usually reported, and `giou_accuracy_at_{k}` with
        GIoU >= 0.5, as in the published code (from MDETR). GIoU is at most IoU, so the second is
        at most the first.

    Raises:
        ValueError: If the numbers of expressions differ.
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
    """Compute Flickr30k Entities recall at k of phrases with one or more boxes.

    Args:
        predicted: (M, 4) boxes of each of n phrases, best first; no boxes are a miss.
        truths: (G, 4) boxes of each phrase, at least one.
        ks: Numbers of predictions considered.

    Returns:
        `any_recall_at_{k}`: one of the k best has IoU >= 0.5 with any box of the phrase;
        `merged_recall_at_{k}`: with the box that encloses them all; `any_upper_bound` and
        `merged_upper_bound`: the same over all predictions.

    Raises:
        ValueError: If the numbers of phrases differ, or a phrase has no box (the protocols skip
            such phrases).

    Source: FIBER's published evaluation (from MDETR): ANY-BOX and MERGED-BOXES.
    """
    _check_counts(len(predicted), len(truths))
    ranks: dict[str, list[int]] = {"any": [], "merged": []}
    for number, (boxes, own) in enumerate(zip(predicted, truths, strict=True)):
        own = as_boxes(own)
        if not len(own):
            raise ValueError(f"phrase {number} has no ground-truth box; expected at least one")
        ranks["any"].append(first_hit(pairwise_iou(boxes, own)))
        ranks["merged"].append(first_hit(pairwise_iou(boxes, merged(own))))
    results = {}
    for name, values in ranks.items():
        array = np.array(values, dtype=np.int64)
        results |= {f"{name}_recall_at_{k}": mean(array < k) for k in ks}
        results[f"{name}_upper_bound"] = mean(array < NEVER)
    return results


def merged(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the (1, 4) box that encloses (G, 4) boxes."""
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])[None]


def first_hit(overlaps: NDArray[np.float64]) -> int:
    """Rank from 0 of the first row of (M, G) overlaps with a hit; NEVER if there is none."""
    hits = np.flatnonzero((overlaps >= FOUND_AT).any(1))
    return int(hits[0]) if len(hits) else int(NEVER)


def _check_counts(predicted: int, truths: int) -> None:
    if predicted != truths:
        raise ValueError(f"got predictions for {predicted} phrases; expected {truths}")
