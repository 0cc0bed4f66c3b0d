"""LVIS detection metrics: fixed AP with federated annotations, computed by faster-coco-eval.

An LVIS image lists the classes verified to be present or absent. Detections of other classes are
ignored, as are false positives of classes that are not exhaustively annotated.

Fixed AP limits the detections per class over the whole dataset instead of per image, so that
classes do not compete and scores need no calibration across classes. faster-coco-eval only limits
detections per image; `BestOfClasses` applies the limit per class.

Source: Dave et al. 2021, "Evaluating large-vocabulary object detectors: the devil is in the
details"; Gupta et al. 2019 (LVIS).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiber.metrics.detection import (
    SIZES,
    ScoredBoxes,
    TrueBoxes,
    checked_detections,
    checked_truth,
    coco_curves,
    coco_entries,
    mean_ap,
    nan_mean,
)

#: Maximum number of detections per class over the whole dataset.
FIXED_DETECTIONS = 10_000
#: Class groups by number of training images: rare (1 to 10), common (11 to 100), frequent.
FREQUENCIES = {"r": "apr", "c": "apc", "f": "apf"}
#: Classes evaluated at once; faster-coco-eval uses about 1 KB per (image, class) pair.
CLASSES_AT_ONCE = 64


class FederatedTruth(NamedTuple):
    """Ground truth of one image. Class numbers start at 0."""

    #: (G, 4) half-open xyxy.
    boxes_xyxy: ArrayLike
    #: (G,) class of each box.
    classes: Sequence[int]
    #: Classes verified to be absent.
    absent: frozenset[int]
    #: Classes that are not exhaustively annotated.
    incomplete: frozenset[int] = frozenset()
    #: (G,) object areas in square pixels; None uses box areas.
    areas: ArrayLike | None = None


class DetectionTable(NamedTuple):
    """Detections in all images."""

    #: (N,) image numbers from 0.
    images: NDArray
    #: (N,) class numbers from 0.
    classes: NDArray
    #: (N, 4) half-open pixel coordinates.
    boxes_xyxy: NDArray
    #: (N,).
    scores: NDArray

    def take(self, rows: NDArray) -> DetectionTable:
        """Select rows by index or mask."""
        return DetectionTable(*(column[rows] for column in self))


class BestOfClasses:
    """Keep the best detections of each class over all images, using bounded memory.

    On ties, the detection added first is kept. After `max_pending` new detections, all but the best
    are dropped.
    """

    def __init__(
        self, num_classes: int, limit: int = FIXED_DETECTIONS, *, max_pending: int = 1 << 22
    ) -> None:
        self.limit = limit
        self.max_pending = max_pending
        none = np.zeros(0, np.int32)
        self._parts = [
            DetectionTable(none, none, np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
        ]
        self._pending = 0
        # A new detection must score higher than this to be among the best of its class.
        self._min_scores = np.full(num_classes, -np.inf, np.float32)

    def add(self, image: int, boxes_xyxy: ArrayLike, scores: ArrayLike, classes: ArrayLike) -> None:
        """Add N detections in one image: (N, 4) half-open boxes, (N,) scores, (N,) class numbers.

        Raises:
            ValueError: if the numbers of boxes, scores and classes differ.
        """
        numbers = np.asarray(classes, dtype=np.int32)
        found = ScoredBoxes(boxes_xyxy, scores, numbers.tolist())
        boxes, own, _ = checked_detections(image, found)
        images = np.full(len(boxes), image, np.int32)
        added = DetectionTable(images, numbers, boxes.astype(np.float32), own.astype(np.float32))
        self._parts.append(added.take(added.scores > self._min_scores[numbers]))
        self._pending += len(self._parts[-1].scores)
        if self._pending > self.max_pending:
            self._prune()

    def table(self) -> DetectionTable:
        """Return the kept detections as int32 and float32, sorted by class, then by image."""
        kept = self._prune()
        return kept.take(np.lexsort((kept.images, kept.classes)))

    def _prune(self) -> DetectionTable:
        """Keep the best detections of each class, in the order in which they were added."""
        added = DetectionTable(*map(np.concatenate, zip(*self._parts, strict=True)))
        # lexsort is stable: on ties, the earlier detection ranks first.
        order = np.lexsort((-added.scores, added.classes))
        classes = added.classes[order]
        ranks = np.arange(len(order)) - np.searchsorted(classes, classes)
        last = order[ranks == self.limit - 1]
        self._min_scores[added.classes[last]] = added.scores[last]
        kept = added.take(np.sort(order[ranks < self.limit]))
        self._parts, self._pending = [kept], 0
        return kept


def fixed_average_precision(
    detections: DetectionTable, truths: Sequence[FederatedTruth], frequencies: Sequence[str]
) -> dict[str, float]:
    """Compute LVIS AP of all detections over all classes with ground truth.

    Class frequencies are "r" (rare), "c" (common), "f" (frequent) or "" (unknown).

    Returns:
        `ap`, `ap50`, `ap75`; `ap_small`, `ap_medium`, `ap_large` by object area; `apr`, `apc`,
        `apf` by class frequency. Metrics without ground truth are NaN.

    Raises:
        ValueError: if the numbers of boxes, classes and areas of an image differ.
    """
    images = [
        {
            "id": number,
            "neg_category_ids": list(truth.absent),
            "not_exhaustive_category_ids": list(truth.incomplete),
        }
        for number, truth in enumerate(truths)
    ]
    true_columns = _flatten(truths)
    parts = []
    for first in range(0, max(1, len(frequencies)), CLASSES_AT_ONCE):
        block = range(first, min(first + CLASSES_AT_ONCE, len(frequencies)))
        found = detections.take(np.isin(detections.classes, block))
        inside = np.isin(true_columns[1], block)
        *true, areas = (column[inside] for column in true_columns)
        curves = coco_curves(
            images,
            block,
            coco_entries(*true, area=areas),
            coco_entries(
                found.images, found.classes, found.boxes_xyxy.astype(np.float64), score=found.scores
            ),
            limits=[max(1, len(found.scores))],
            lvis_style=True,
        )
        parts.append(curves.precision)
    precision = np.concatenate(parts, axis=2)
    results = mean_ap(precision)
    for area, name in enumerate(SIZES, start=1):
        results[f"ap_{name}"] = nan_mean(precision[..., area])
    groups = np.array(frequencies, dtype=str)
    for frequency, name in FREQUENCIES.items():
        results[name] = nan_mean(precision[:, :, groups == frequency, 0])
    return results


def _flatten(truths: Sequence[FederatedTruth]) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return image numbers, classes, boxes and areas of all ground truth."""
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))]
    for image, truth in enumerate(truths):
        own = TrueBoxes(truth.boxes_xyxy, truth.classes, areas=truth.areas)
        boxes, classes, _, areas = checked_truth(image, own)
        images = np.full(len(boxes), image, np.int64)
        parts.append((images, np.array(classes, dtype=np.int64), boxes, areas))
    images, classes, boxes, areas = map(np.concatenate, zip(*parts, strict=True))
    return images, classes, boxes, areas
