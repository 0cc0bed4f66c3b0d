"""Grounding metrics: RefCOCO accuracy and Flickr30k Entities recall.

Predicted boxes are sorted by descending score. All boxes are xyxy in half-open pixel or normalized
coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiber.metrics.boxes import as_boxes, overlaps_with_own, pairwise_giou, pairwise_iou
from fiber.metrics.matching import mean

#: Minimum overlap for a hit.
FOUND_AT = 0.5
#: Rank that represents a miss.
NEVER = np.iinfo(np.int64).max


def referring_accuracy(
    predicted: Sequence[ArrayLike], truths: ArrayLike, ks: Sequence[int] = (1,)
) -> dict[str, float]:
    """Compute RefCOCO accuracy: the fraction of expressions with a hit among their k best boxes.

    Predictions are (M, 4) boxes per expression, best first; an expression without boxes is a miss.

    Returns:
        `accuracy_at_{k}` with IoU >= 0.5, as usually reported, and `giou_accuracy_at_{k}` with
        GIoU >= 0.5, as in the published code (from MDETR).

    Raises:
        ValueError: if the numbers of expressions differ.
    """
    truths = as_boxes(truths)
    _check_counts(len(predicted), len(truths))
    results = {}
    for name, overlap in (("accuracy", pairwise_iou), ("giou_accuracy", pairwise_giou)):
        found = overlaps_with_own(overlap, predicted, truths)
        ranks = np.array([first_hit(overlaps[:, None]) for overlaps in found])
        results |= {f"{name}_at_{k}": mean(ranks < k) for k in ks}
    return results


def phrase_recall(
    predicted: Sequence[ArrayLike],
    truths: Sequence[ArrayLike],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Compute Flickr30k Entities recall at k for phrases with one or more boxes.

    Predictions are (M, 4) boxes per phrase, best first; a phrase without boxes is a miss. `truths`
    are (G, 4) boxes per phrase, at least one.

    Returns:
        `any_recall_at_{k}`, the fraction of phrases for which one of the k best predictions has
        IoU >= 0.5 with any box of the phrase; `merged_recall_at_{k}`, the same with the box that
        encloses all boxes of the phrase; `any_upper_bound` and `merged_upper_bound`, the same over
        all predictions.

    Raises:
        ValueError: if the numbers of phrases differ, or a phrase has no box.

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
        array = np.array(values)
        results |= {f"{name}_recall_at_{k}": mean(array < k) for k in ks}
        results[f"{name}_upper_bound"] = mean(array < NEVER)
    return results


def merged(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (1, 4) box that encloses (G, 4) boxes."""
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])[None]


def first_hit(overlaps: NDArray[np.float64]) -> int:
    """Return the index of the first row of (M, G) overlaps with a hit, or `NEVER` if none."""
    hits = np.flatnonzero((overlaps >= FOUND_AT).any(1))
    return int(hits[0]) if len(hits) else int(NEVER)


def _check_counts(predicted: int, truths: int) -> None:
    if predicted != truths:
        raise ValueError(f"expected predictions for {truths} phrases, got {predicted}")
