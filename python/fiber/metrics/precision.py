"""Precision at given recalls, class by class: what COCO and LVIS compute and then average.

Letters: C classes, A ranges of areas, T thresholds of overlap, K limits of detections, R recalls,
D detections, G true boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fiber.metrics.box_matching import Found, Truths, match

#: Recalls at which precision is read.
RECALLS = np.linspace(0, 1, 101)
#: Areas in square pixels, both ends included: all, small, medium, large.
AREAS = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
Rows = NDArray[np.int64] | slice
#: Detections that are matched together: classes are gone through in blocks of about so many.
_DETECTIONS_AT_ONCE = 1 << 18


class DetectionTable(NamedTuple):
    """Detections of all pictures, in the order in which they were given."""

    pictures: NDArray[np.int64]  # (D,) from 0
    classes: NDArray[np.int64]  # (D,) from 0
    boxes_xyxy: NDArray[np.float64]  # (D, 4)
    scores: NDArray[np.float64]  # (D,)
    #: (D,) True where a detection that finds nothing counts neither way; None: nowhere.
    unpunished: NDArray[np.bool_] | None = None

    def take(self, rows: Rows) -> DetectionTable:
        """Choose detections."""
        spared = None if self.unpunished is None else self.unpunished[rows]
        return DetectionTable(
            self.pictures[rows],
            self.classes[rows],
            self.boxes_xyxy[rows],
            self.scores[rows],
            spared,
        )


class TruthTable(NamedTuple):
    """True boxes of all pictures, in the order in which they were given."""

    pictures: NDArray[np.int64]  # (G,)
    classes: NDArray[np.int64]  # (G,)
    boxes_xyxy: NDArray[np.float64]  # (G, 4)
    crowd: NDArray[np.bool_]  # (G,)
    #: (G,) square pixels, by which a box falls in a range: of the thing, not of its box.
    areas: NDArray[np.float64]

    def take(self, rows: Rows) -> TruthTable:
        """Choose true boxes."""
        return TruthTable(
            self.pictures[rows],
            self.classes[rows],
            self.boxes_xyxy[rows],
            self.crowd[rows],
            self.areas[rows],
        )


class Curves(NamedTuple):
    """What the means are made of; NaN where a class has no true box in a range of areas."""

    #: (C, A), true boxes that count.
    positives: NDArray[np.int64]
    #: (C, A, T, R), the best precision at this recall or a higher one, 0 where none is so high.
    precisions: NDArray[np.float64]
    #: (C, A, K, T), the highest recall.
    recalls: NDArray[np.float64]

    def of(self, classes: Sequence[int] | NDArray[np.int64]) -> Curves:
        """Choose classes."""
        rows = np.asarray(classes, dtype=np.int64)
        return Curves(self.positives[rows], self.precisions[rows], self.recalls[rows])


def precision_curves(
    detections: DetectionTable,
    truths: TruthTable,
    num_classes: int,
    *,
    thresholds: Sequence[float],
    areas: Sequence[tuple[float, float]] = AREAS,
    limits: Sequence[int | None] = (1, 10, 100),
) -> Curves:
    """Compute the curves of every class.

    Args:
        detections: of all pictures.
        truths: of the same pictures.
        num_classes: C.
        thresholds: least IoU of a hit.
        areas: ranges; outside, true boxes are not counted and detections that find nothing are not
            punished.
        limits: ascending numbers of best detections of a class in a picture; None: all. Precision
            is that of the last.
    """
    found, own = _sorted_detections(detections, limits[-1]), _sorted_truths(truths)
    levels = np.asarray(thresholds, dtype=np.float64)
    shape = (num_classes, len(areas))
    curves = Curves(
        np.zeros(shape, np.int64),
        np.full((*shape, len(levels), len(RECALLS)), np.nan),
        np.full((*shape, len(limits), len(levels)), np.nan),
    )
    for first, last in _blocks(found.classes, num_classes):
        some = found.take(_between(found.classes, first, last))
        true = own.take(_between(own.classes, first, last))
        _fill(curves, some, true, (first, last), levels, areas, limits)
    return curves


def _fill(
    curves: Curves,
    found: DetectionTable,
    own: TruthTable,
    classes: tuple[int, int],
    levels: NDArray[np.float64],
    areas: Sequence[tuple[float, float]],
    limits: Sequence[int | None],
) -> None:
    """Compute the curves of the classes from first to last - 1."""
    pictures = 1 + max(found.pictures.max(initial=0), own.pictures.max(initial=0))
    cells = found.classes * pictures + found.pictures
    outside = np.stack([_outside(own.areas, bounds) | own.crowd for bounds in areas])
    matches = match(
        Found(cells, found.boxes_xyxy, found.scores),
        Truths(own.classes * pictures + own.pictures, own.boxes_xyxy, own.crowd, outside),
        levels,
    )
    box_areas = np.prod(found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2], axis=1)
    spared = np.stack([_outside(box_areas, bounds) for bounds in areas])
    if found.unpunished is not None:
        spared |= found.unpunished
    # (A, T, D), detections that count against the class.
    miss = ~(matches.hit | matches.excused | spared[:, None])
    _, starts, counts = np.unique(cells, return_index=True, return_counts=True)
    ranks = np.arange(len(cells)) - np.repeat(starts, counts)
    for label in range(*classes):
        rows = _between(found.classes, label, label + 1)
        columns = _between(own.classes, label, label + 1)
        curves.positives[label] = (~outside[:, columns]).sum(1)
        # A stable sort, so that equal scores keep the order of the pictures.
        order = np.argsort(-found.scores[rows], kind="stable")
        hit, wrong = (part[:, :, rows][:, :, order] for part in (matches.hit, miss))
        for area in np.flatnonzero(curves.positives[label]):
            positives = int(curves.positives[label, area])
            curves.precisions[label, area] = _precisions(hit[area], wrong[area], positives)
            for place, limit in enumerate(limits):
                within = ranks[rows][order] < (len(cells) if limit is None else limit)
                hits = (hit[area] & within).sum(1)
                curves.recalls[label, area, place] = hits / positives


def _precisions(
    hit: NDArray[np.bool_], miss: NDArray[np.bool_], positives: int
) -> NDArray[np.float64]:
    """Precision (T, R) of one class from its detections (T, D), best first."""
    misses = np.cumsum(miss, axis=1, dtype=np.int64)
    sampled = np.zeros((len(hit), len(RECALLS)))
    for level in range(len(hit)):
        # Between two hits precision only falls and recall stays, so that hits alone decide.
        places = np.flatnonzero(hit[level])
        hits = np.arange(1, len(places) + 1, dtype=np.float64)
        precisions = hits / (misses[level, places] + hits + np.spacing(1))
        highest = np.maximum.accumulate(precisions[::-1])[::-1]
        at = np.searchsorted(hits / positives, RECALLS, side="left")
        inside = at < len(places)
        sampled[level, inside] = highest[at[inside]]
    return sampled


def _sorted_detections(table: DetectionTable, limit: int | None) -> DetectionTable:
    """Order by class, picture and score, best first, and keep so many of each."""
    # lexsort is stable: equal scores keep the order in which they were given.
    order = np.lexsort((-table.scores, table.pictures, table.classes))
    if limit is not None:
        pictures, classes = table.pictures[order], table.classes[order]
        new = np.diff(pictures, prepend=-1) | np.diff(classes, prepend=-1)
        starts = np.flatnonzero(new)
        ranks = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        order = order[ranks < limit]
    return table.take(order)


def _sorted_truths(table: TruthTable) -> TruthTable:
    return table.take(np.lexsort((table.pictures, table.classes)))


def _outside(areas: NDArray[np.float64], bounds: tuple[float, float]) -> NDArray[np.bool_]:
    return (areas < bounds[0]) | (areas > bounds[1])


def _blocks(classes: NDArray[np.int64], num_classes: int) -> Iterator[tuple[int, int]]:
    """Split the classes into runs [first, last) of bounded numbers of detections."""
    ends = np.searchsorted(classes, np.arange(1, num_classes + 1))
    first = 0
    while first < num_classes:
        done = ends[first - 1] if first else 0
        last = int(np.searchsorted(ends, done + _DETECTIONS_AT_ONCE, side="right"))
        last = min(max(last, first + 1), num_classes)
        yield first, last
        first = last


def _between(classes: NDArray[np.int64], first: int, last: int) -> slice:
    """Rows of the classes from first to last - 1, of ascending classes."""
    return slice(*np.searchsorted(classes, [first, last]).tolist())
