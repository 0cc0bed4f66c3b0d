"""Detection: average precision as COCO defines it.

The computation is our own, in numpy, so that the number needs no extra package; the tests hold it
against pycocotools. Area ranges are left out: all boxes count alike.

Letters: T thresholds, D detections and G true boxes of one class.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiber.metrics.boxes import areas, as_boxes, intersections

#: IoU from 0.5 to 0.95: AP is the mean over these.
COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
_RECALLS = np.linspace(0, 1, 101)


class ScoredBoxes(NamedTuple):
    """What was detected in one picture."""

    #: (n, 4) half-open xyxy.
    boxes_xyxy: ArrayLike
    #: (n,), higher is surer.
    scores: ArrayLike
    #: (n,) class of each box: a name or a number.
    labels: Sequence[Hashable]


class TrueBoxes(NamedTuple):
    """What is in one picture."""

    #: (n, 4) half-open xyxy.
    boxes_xyxy: ArrayLike
    #: (n,) class of each box.
    labels: Sequence[Hashable]
    #: (n,) True where a box stands for a crowd, which any number of detections may lie in without
    #: being counted; None: no crowds.
    crowd: ArrayLike | None = None


def average_precision(
    detections: Sequence[ScoredBoxes],
    truths: Sequence[TrueBoxes],
    *,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
    max_detections: int = 100,
) -> dict[str, float]:
    """COCO's average precision over the classes that have a true box.

    Args:
        detections: of each picture.
        truths: of the same pictures.
        thresholds: least IoU of a hit; AP is the mean over them. AP50 and AP75 need 0.5 and 0.75.
        max_detections: of a class in one picture, the best of which are looked at.

    Returns:
        `ap`, `ap50`, `ap75` (NaN if the threshold is not among them) and `ar`, the mean of the
        largest recalls.

    Raises:
        ValueError: if the numbers of pictures, boxes, scores or labels do not agree.
    """
    by_class = _curves(detections, truths, thresholds, max_detections)
    return _summary(list(by_class.values()), thresholds)


def average_precision_by_class(
    detections: Sequence[ScoredBoxes],
    truths: Sequence[TrueBoxes],
    *,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
    max_detections: int = 100,
) -> dict[Hashable, dict[str, float]]:
    """The same numbers as `average_precision` for each class alone, sorted by name."""
    by_class = _curves(detections, truths, thresholds, max_detections)
    return {label: _summary([by_class[label]], thresholds) for label in sorted(by_class, key=str)}


class _Curve(NamedTuple):
    precisions: NDArray[np.float64]  # (T, 101), at the recalls 0, 0.01, ... 1
    recalls: NDArray[np.float64]  # (T,), the largest


def _summary(curves: list[_Curve], thresholds: Sequence[float]) -> dict[str, float]:
    if not curves:
        return dict.fromkeys(("ap", "ap50", "ap75", "ar"), float("nan"))
    precisions = np.stack([curve.precisions for curve in curves])

    def at(threshold: float) -> float:
        chosen = np.isclose(thresholds, threshold)
        return float(precisions[:, chosen].mean()) if chosen.any() else float("nan")

    return {
        "ap": float(precisions.mean()),
        "ap50": at(0.5),
        "ap75": at(0.75),
        "ar": float(np.mean([curve.recalls for curve in curves])),
    }


class _ClassInPicture(NamedTuple):
    scores: NDArray[np.float64]  # (D,), best first
    overlaps: NDArray[np.float64]  # (D, G)
    crowd: NDArray[np.bool_]  # (G,)


def _curves(
    detections: Sequence[ScoredBoxes],
    truths: Sequence[TrueBoxes],
    thresholds: Sequence[float],
    max_detections: int,
) -> dict[Hashable, _Curve]:
    """The curve of each class that has a true box which is no crowd."""
    if len(detections) != len(truths):
        raise ValueError(f"got detections of {len(detections)} pictures; expected {len(truths)}")
    cells: dict[Hashable, list[_ClassInPicture]] = {}
    for number, (found, true) in enumerate(zip(detections, truths, strict=True)):
        for label, cell in _split_by_class(number, found, true, max_detections).items():
            cells.setdefault(label, []).append(cell)
    levels = np.asarray(thresholds, dtype=np.float64)
    return {
        label: _curve(parts, levels)
        for label, parts in cells.items()
        if any((~part.crowd).any() for part in parts)
    }


def _split_by_class(
    number: int, found: ScoredBoxes, true: TrueBoxes, max_detections: int
) -> dict[Hashable, _ClassInPicture]:
    found, true = ScoredBoxes(*found), TrueBoxes(*true)
    boxes, scores = as_boxes(found.boxes_xyxy), np.asarray(found.scores, dtype=np.float64)
    own = as_boxes(true.boxes_xyxy)
    crowd = np.zeros(len(own), bool) if true.crowd is None else np.asarray(true.crowd, dtype=bool)
    if not len(boxes) == len(scores) == len(found.labels):
        raise ValueError(
            f"picture {number} has {len(boxes)} detected boxes, {len(scores)} scores and"
            f" {len(found.labels)} labels; expected as many of each"
        )
    if not len(own) == len(crowd) == len(true.labels):
        raise ValueError(
            f"picture {number} has {len(own)} true boxes, {len(true.labels)} labels and"
            f" {len(crowd)} crowd flags; expected as many of each"
        )
    rows, columns = _positions(found.labels), _positions(true.labels)
    cells = {}
    for label in rows.keys() | columns.keys():
        i, j = rows.get(label, []), columns.get(label, [])
        # A stable sort, so that equal scores keep the order in which they were given.
        best = np.argsort(-scores[i], kind="stable")[:max_detections]
        overlaps = _overlaps(boxes[i][best], own[j], crowd[j])
        cells[label] = _ClassInPicture(scores[i][best], overlaps, crowd[j])
    return cells


def _positions(labels: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    positions: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        positions.setdefault(label, []).append(index)
    return positions


def _overlaps(
    boxes: NDArray[np.float64], own: NDArray[np.float64], crowd: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """IoU (D, G); with a crowd, the part of the detection that lies in it."""
    shared = intersections(boxes, own)
    whole = areas(boxes)[:, None] + np.where(crowd, 0, areas(own)[None] - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def _match(
    cell: _ClassInPicture, thresholds: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Give each detection, best first, the free true box that it overlaps most.

    Returns:
        (T, D) whether it hit a true box, and whether it only lies in a crowd.
    """
    shape = (len(thresholds), len(cell.scores))
    hit, in_crowd = np.zeros(shape, bool), np.zeros(shape, bool)
    if not cell.overlaps.size:
        return hit, in_crowd
    # COCO takes an IoU a hair below 1 as equal to a threshold of 1.
    least = np.minimum(thresholds, 1 - 1e-10)[:, None]
    free = np.repeat(~cell.crowd[None], len(thresholds), axis=0)
    last, levels = free.shape[1] - 1, np.arange(len(thresholds))
    for d, overlaps in enumerate(cell.overlaps):
        reached = overlaps[None] >= least
        candidates = np.where(reached & free, overlaps, -1.0)
        # Of equal overlaps COCO takes the last.
        chosen = last - np.argmax(candidates[:, ::-1], axis=1)
        hit[:, d] = candidates[levels, chosen] >= 0
        free[levels[hit[:, d]], chosen[hit[:, d]]] = False
        in_crowd[:, d] = ~hit[:, d] & (reached & cell.crowd).any(1)
    return hit, in_crowd


def _curve(cells: list[_ClassInPicture], thresholds: NDArray[np.float64]) -> _Curve:
    """Precision at 101 recalls over the pictures of one class."""
    positives = sum(int((~cell.crowd).sum()) for cell in cells)
    order = np.argsort(-np.concatenate([cell.scores for cell in cells]), kind="stable")
    matches = [_match(cell, thresholds) for cell in cells]
    hit = np.concatenate([m[0] for m in matches], axis=1)[:, order]
    in_crowd = np.concatenate([m[1] for m in matches], axis=1)[:, order]
    hits = np.cumsum(hit, axis=1).astype(np.float64)
    misses = np.cumsum(~hit & ~in_crowd, axis=1).astype(np.float64)
    recalls = hits / positives
    precisions = hits / (hits + misses + np.spacing(1))
    # The largest precision at this recall or any higher one.
    precisions = np.maximum.accumulate(precisions[:, ::-1], axis=1)[:, ::-1]
    sampled = np.zeros((len(thresholds), len(_RECALLS)))
    for t in range(len(thresholds)):
        at = np.searchsorted(recalls[t], _RECALLS, side="left")
        inside = at < recalls.shape[1]
        sampled[t, inside] = precisions[t, at[inside]]
    largest = recalls[:, -1] if recalls.shape[1] else np.zeros(len(thresholds))
    return _Curve(sampled, largest)
