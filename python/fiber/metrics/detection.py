"""Detection: average precision as COCO defines it, all twelve numbers.

The numbers are pycocotools', against which the tests hold them (within 1e-9, on random cases with
equal scores, crowds and empty pictures); equal scores in different pictures count in the order in
which the pictures are given, with pycocotools in that of their ids. Where it gives -1, for what has
no true box, the number here is NaN. The computation is ours, in numpy: on a set of COCO's size it
is faster than pycocotools and than the compiled faster-coco-eval (`benches/bench_coco_ap.py`), so
that the number needs no extra package.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiber.metrics.boxes import as_boxes
from fiber.metrics.precision import Curves, DetectionTable, TruthTable, precision_curves

#: IoU from 0.5 to 0.95: AP is the mean over these.
COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
#: Detections of a class in a picture that are looked at; precision is that of the last.
COCO_LIMITS = (1, 10, 100)

#: Ends of the names of numbers of one range of areas.
SIZES = ("small", "medium", "large")


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
    #: (n,) area in square pixels of the thing itself, by which it is small, medium or large; None:
    #: that of its box.
    areas: ArrayLike | None = None


def average_precision(
    detections: Sequence[ScoredBoxes],
    truths: Sequence[TrueBoxes],
    *,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
    limits: Sequence[int] = COCO_LIMITS,
) -> dict[str, float]:
    """COCO's average precision and recall over the classes that have a true box.

    Args:
        detections: of each picture.
        truths: of the same pictures, boxes in pixels.
        thresholds: least IoU of a hit; AP is the mean over them. AP50 and AP75 need 0.5 and 0.75.
        limits: ascending numbers of the best detections of a class in one picture.

    Returns:
        `ap`, `ap50` and `ap75` (NaN if the threshold is not among them), `ar_at_{limit}`, the mean
        of the largest recalls; at the last limit `ap_small`, `ap_medium`, `ap_large` and the same
        of `ar`, of true boxes up to 32 x 32, up to 96 x 96 and above. NaN where there is no true
        box.

    Raises:
        ValueError: if the numbers of pictures, boxes, scores, labels, crowd flags or areas do not
            agree.
    """
    tables = Tables.of(detections, truths)
    return _summary(tables.curves(thresholds, limits), thresholds, limits)


def average_precision_by_class(
    detections: Sequence[ScoredBoxes],
    truths: Sequence[TrueBoxes],
    *,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
    limits: Sequence[int] = COCO_LIMITS,
) -> dict[Hashable, dict[str, float]]:
    """The same numbers as `average_precision` for each class alone, sorted by name.

    Classes without a true box that counts are left out.
    """
    tables = Tables.of(detections, truths)
    curves = tables.curves(thresholds, limits)
    numbers = {label: place for place, label in enumerate(tables.classes)}
    return {
        label: _summary(curves.of([numbers[label]]), thresholds, limits)
        for label in sorted(numbers, key=str)
        if curves.positives[numbers[label], 0]
    }


class Tables(NamedTuple):
    """Detections and true boxes of all pictures as arrays."""

    detections: DetectionTable
    truths: TruthTable
    #: What the classes of the arrays are called.
    classes: list[Hashable]

    @classmethod
    def of(cls, detections: Sequence[ScoredBoxes], truths: Sequence[TrueBoxes]) -> Tables:
        """Collect what pictures hold.

        Raises:
            ValueError: if numbers do not agree.
        """
        if len(detections) != len(truths):
            raise ValueError(
                f"got detections of {len(detections)} pictures; expected {len(truths)}"
            )
        places: dict[Hashable, int] = {}

        def classes(labels: Sequence[Hashable]) -> list[int]:
            return [places.setdefault(label, len(places)) for label in labels]

        scored = [
            (*_scored(number, ScoredBoxes(*found)), classes(found[2]))
            for number, found in enumerate(detections)
        ]
        true = [
            (*_true(number, TrueBoxes(*own)), classes(own[1])) for number, own in enumerate(truths)
        ]
        return cls(
            DetectionTable(
                _numbers(scored),
                _joined([part[2] for part in scored], np.int64),
                _joined([part[0] for part in scored], np.float64).reshape(-1, 4),
                _joined([part[1] for part in scored], np.float64),
            ),
            TruthTable(
                _numbers(true),
                _joined([part[3] for part in true], np.int64),
                _joined([part[0] for part in true], np.float64).reshape(-1, 4),
                _joined([part[1] for part in true], bool),
                _joined([part[2] for part in true], np.float64),
            ),
            list(places),
        )

    def curves(self, thresholds: Sequence[float], limits: Sequence[int]) -> Curves:
        """Compute the curves of every class and of COCO's ranges of areas."""
        return precision_curves(
            self.detections,
            self.truths,
            len(self.classes),
            thresholds=thresholds,
            limits=limits,
        )


def _summary(
    curves: Curves, thresholds: Sequence[float], limits: Sequence[int]
) -> dict[str, float]:
    """Take the means of (C, A, ...) over the classes that have a true box."""
    whole = curves.precisions[:, 0]
    results = {"ap": seen_mean(whole)}
    for name, threshold in (("ap50", 0.5), ("ap75", 0.75)):
        results[name] = seen_mean(whole[:, np.isclose(thresholds, threshold)])
    for place, limit in enumerate(limits):
        results[f"ar_at_{limit}"] = seen_mean(curves.recalls[:, 0, place])
    for area, name in enumerate(SIZES, start=1):
        results[f"ap_{name}"] = seen_mean(curves.precisions[:, area])
        results[f"ar_{name}"] = seen_mean(curves.recalls[:, area, -1])
    return results


def seen_mean(values: NDArray[np.float64]) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    seen = values[~np.isnan(values)]
    return float(seen.mean()) if seen.size else float("nan")


def _scored(number: int, found: ScoredBoxes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Boxes and scores of a picture, checked."""
    boxes, scores = as_boxes(found.boxes_xyxy), np.asarray(found.scores, dtype=np.float64)
    if not len(boxes) == len(scores) == len(found.labels):
        raise ValueError(
            f"picture {number} has {len(boxes)} detected boxes, {len(scores)} scores and"
            f" {len(found.labels)} labels; expected as many of each"
        )
    return boxes, scores


def _true(
    number: int, own: TrueBoxes
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Boxes, crowd flags and areas of a picture, checked."""
    boxes = as_boxes(own.boxes_xyxy)
    crowd = np.zeros(len(boxes), bool) if own.crowd is None else np.asarray(own.crowd, dtype=bool)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    if own.areas is not None:
        areas = np.asarray(own.areas, dtype=np.float64)
    if not len(boxes) == len(crowd) == len(areas) == len(own.labels):
        raise ValueError(
            f"picture {number} has {len(boxes)} true boxes, {len(own.labels)} labels,"
            f" {len(crowd)} crowd flags and {len(areas)} areas; expected as many of each"
        )
    return boxes, crowd, areas


def _numbers(parts: Sequence[tuple]) -> NDArray[np.int64]:
    """Number of the picture of each row, from 0."""
    counts = [len(part[0]) for part in parts]
    return np.repeat(np.arange(len(parts), dtype=np.int64), counts)


def _joined(parts: Sequence[ArrayLike], kind: type) -> NDArray:
    if not parts:
        return np.zeros(0, kind)
    return np.concatenate([np.asarray(part, dtype=kind) for part in parts])
