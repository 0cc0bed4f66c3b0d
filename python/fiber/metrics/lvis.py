"""LVIS: fixed average precision of many classes that are not annotated everywhere.

An LVIS picture says for some classes only whether they are there: for those that have boxes, and
for those that were looked for in vain. Detections of any other class are left out. Of a class that
may have more than its boxes, a detection that finds nothing is not punished. The rest is COCO's
precision (`metrics.precision`), without crowds.

Fixed AP keeps a number of best detections of each class over the whole set and any number in a
picture, so that classes do not compete for places and scores need no calibration between them.

Source: Dave et al. 2021, "Evaluating large-vocabulary object detectors: the devil is in the
details"; Gupta et al. 2019, whose `lvis` package the published evaluation runs on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiber.metrics.boxes import as_boxes
from fiber.metrics.detection import COCO_THRESHOLDS, seen_mean
from fiber.metrics.precision import Curves, DetectionTable, TruthTable, precision_curves

#: Detections of a class over the whole set that count.
FIXED_DETECTIONS = 10_000
#: Groups of classes by the number of training pictures that show them: up to 10, up to 100, more.
FREQUENCIES = {"r": "apr", "c": "apc", "f": "apf"}


class FederatedTruth(NamedTuple):
    """What is known of one picture; classes are numbers from 0."""

    #: (n, 4) half-open xyxy.
    boxes_xyxy: ArrayLike
    #: (n,) class of each box.
    classes: Sequence[int]
    #: Classes that are not there.
    absent: frozenset[int]
    #: Classes that may have more than their boxes.
    incomplete: frozenset[int] = frozenset()
    #: (n,) area in square pixels of the thing itself; None: that of its box.
    areas: ArrayLike | None = None


class _Rows(NamedTuple):
    classes: NDArray[np.int32]
    pictures: NDArray[np.int32]
    scores: NDArray[np.float32]
    boxes_xyxy: NDArray[np.float32]


class BestOfClasses:
    """The best detections of each class over all pictures, picked while they come in.

    Of equal scores the one that came in earlier is kept.

    Args:
        num_classes: classes are numbers below it.
        limit: detections kept of each.
        waiting: detections that may come in before the worse ones are dropped.
    """

    def __init__(
        self, num_classes: int, limit: int = FIXED_DETECTIONS, *, waiting: int = 1 << 22
    ) -> None:
        self.limit = limit
        self.waiting = waiting
        self._parts: list[_Rows] = []
        self._count = 0
        # Score that a detection of each class must exceed to be among its best.
        self._least = np.full(num_classes, -np.inf, np.float32)

    def add(
        self, picture: int, boxes_xyxy: ArrayLike, scores: ArrayLike, classes: ArrayLike
    ) -> None:
        """Add what was detected in one picture.

        Args:
            picture: its number, from 0.
            boxes_xyxy: (n, 4) half-open pixels.
            scores: (n,).
            classes: (n,).

        Raises:
            ValueError: if the numbers of boxes, scores and classes differ.
        """
        boxes, marks = as_boxes(boxes_xyxy), np.asarray(scores, dtype=np.float32)
        labels = np.asarray(classes, dtype=np.int32)
        if not len(boxes) == len(marks) == len(labels):
            raise ValueError(
                f"picture {picture} has {len(boxes)} detected boxes, {len(marks)} scores and"
                f" {len(labels)} classes; expected as many of each"
            )
        good = marks > self._least[labels]
        rows = _Rows(
            labels[good],
            np.full(good.sum(), picture, np.int32),
            marks[good],
            boxes[good].astype(np.float32),
        )
        self._parts.append(rows)
        self._count += len(rows.scores)
        if self._count > self.waiting:
            self._drop_worse()

    def table(self) -> DetectionTable:
        """Give what was kept, class by class, in the order of the pictures."""
        rows = self._drop_worse()
        order = np.lexsort((rows.pictures, rows.classes))
        return DetectionTable(
            rows.pictures[order].astype(np.int64),
            rows.classes[order].astype(np.int64),
            rows.boxes_xyxy[order].astype(np.float64),
            rows.scores[order].astype(np.float64),
        )

    def _drop_worse(self) -> _Rows:
        """Keep the best of each class, in the order in which they came."""
        none = np.zeros(0, np.int32)
        parts = [_Rows(none, none, np.zeros(0, np.float32), np.zeros((0, 4), np.float32))]
        parts += self._parts
        classes = np.concatenate([part.classes for part in parts])
        scores = np.concatenate([part.scores for part in parts])
        # lexsort is stable, so that of equal scores those that came earlier are before the others.
        order = np.lexsort((-scores, classes))
        starts = np.searchsorted(classes[order], np.arange(len(self._least)))
        ranks = np.arange(len(order)) - starts[classes[order]]
        last = order[ranks == self.limit - 1]
        self._least[classes[last]] = scores[last]
        best = np.sort(order[ranks < self.limit])
        rows = _Rows(
            classes[best],
            np.concatenate([part.pictures for part in parts])[best],
            scores[best],
            np.concatenate([part.boxes_xyxy for part in parts])[best],
        )
        # What is kept does not count as waiting.
        self._parts, self._count = [rows], 0
        return rows


def fixed_average_precision(
    detections: DetectionTable,
    truths: Sequence[FederatedTruth],
    frequencies: Sequence[str],
    *,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
) -> dict[str, float]:
    """AP over the classes that have a true box, as LVIS counts it.

    Args:
        detections: of `BestOfClasses`, or any; all of them count.
        truths: of each picture that detections number.
        frequencies: of each class "r", "c" or "f" (rare, common, frequent); "" for unknown.
        thresholds: least IoU of a hit; AP is the mean over them.

    Returns:
        `ap`, `ap50`, `ap75`; `ap_small`, `ap_medium`, `ap_large` by the areas of true boxes;
        `apr`, `apc` and `apf` of rare, common and frequent classes. NaN where there is no true box.
    """
    table, known = _truth_table(truths), _Known(truths, len(frequencies))
    cells = detections.pictures * len(frequencies) + detections.classes
    judged = detections.take(np.flatnonzero(np.isin(cells, known.judged)))
    cells = judged.pictures * len(frequencies) + judged.classes
    curves = precision_curves(
        judged._replace(unpunished=np.isin(cells, known.incomplete)),
        table,
        len(frequencies),
        thresholds=thresholds,
        limits=(None,),
    )
    return _summary(curves, frequencies, thresholds)


class _Known:
    """Pairs of picture and class, as one number each, of which something is known."""

    def __init__(self, truths: Sequence[FederatedTruth], num_classes: int) -> None:
        judged, incomplete = [], []
        for number, own in enumerate(truths):
            base = number * num_classes
            judged += [base + label for label in own.absent | set(own.classes)]
            incomplete += [base + label for label in own.incomplete]
        self.judged = np.array(judged, dtype=np.int64)
        self.incomplete = np.array(incomplete, dtype=np.int64)


def _truth_table(truths: Sequence[FederatedTruth]) -> TruthTable:
    boxes = [as_boxes(own.boxes_xyxy) for own in truths]
    areas = []
    for number, (own, found) in enumerate(zip(truths, boxes, strict=True)):
        if own.areas is None:
            areas.append(np.prod(found[:, 2:] - found[:, :2], axis=1))
        else:
            areas.append(np.asarray(own.areas, dtype=np.float64))
        if not len(found) == len(areas[-1]) == len(own.classes):
            raise ValueError(
                f"picture {number} has {len(found)} true boxes, {len(own.classes)} classes and"
                f" {len(areas[-1])} areas; expected as many of each"
            )
    counts = [len(found) for found in boxes]
    total = sum(counts)
    return TruthTable(
        np.repeat(np.arange(len(truths), dtype=np.int64), counts),
        np.array([label for own in truths for label in own.classes], dtype=np.int64),
        np.concatenate([np.zeros((0, 4)), *boxes]),
        np.zeros(total, bool),
        np.concatenate([np.zeros(0), *areas]),
    )


def _summary(
    curves: Curves, frequencies: Sequence[str], thresholds: Sequence[float]
) -> dict[str, float]:
    whole = curves.precisions[:, 0]
    results = {"ap": seen_mean(whole)}
    for name, threshold in (("ap50", 0.5), ("ap75", 0.75)):
        results[name] = seen_mean(whole[:, np.isclose(thresholds, threshold)])
    for area, name in enumerate(("small", "medium", "large"), start=1):
        results[f"ap_{name}"] = seen_mean(curves.precisions[:, area])
    groups = np.array(frequencies)
    for frequency, name in FREQUENCIES.items():
        results[name] = seen_mean(whole[groups == frequency])
    return results
