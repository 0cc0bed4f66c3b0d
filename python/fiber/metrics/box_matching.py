"""Which detection finds which true box, for all pictures and classes at once.

COCO's rule: in each picture and class, detections from the best score down each take the free true
box that they overlap most, at every threshold of overlap and for every range of areas apart. True
boxes that are not counted (crowds, those of other areas) are taken only where no counted one can
be; what takes one counts neither way.

Only pairs that reach the lowest threshold are looked at, and the n-th detections of all pictures
and classes are matched together, so that numpy does the work.

Letters: A ranges of areas, T thresholds, D detections, G true boxes, P pairs of the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Pairs whose overlaps are computed together.
_PAIRS_AT_ONCE = 1 << 20
_Numbers = NDArray[np.int64]
_Floats = NDArray[np.float64]
_Flags = NDArray[np.bool_]


class Found(NamedTuple):
    """Detections, ordered by class, then picture, then from the best score down."""

    cells: _Numbers  # (D,) one number for each class in each picture, ascending
    boxes_xyxy: _Floats  # (D, 4)
    scores: _Floats  # (D,)


class Truths(NamedTuple):
    """True boxes, ordered by class, then picture, then as given."""

    cells: _Numbers  # (G,) as for `Found`
    boxes_xyxy: _Floats  # (G, 4)
    crowd: _Flags  # (G,)
    #: (A, G), True where it does not count.
    ignored: _Flags


class Matches(NamedTuple):
    """What became of each detection."""

    #: (A, T, D), whether it took a true box that counts.
    hit: _Flags
    #: (A, T, D), whether it took one that does not.
    excused: _Flags


class _Pairs(NamedTuple):
    """Pairs that overlap enough, detection by detection, those that overlap most first."""

    found: _Numbers  # (P,)
    true: _Numbers  # (P,)
    overlaps: _Floats  # (P,)


def match(found: Found, true: Truths, thresholds: _Floats) -> Matches:
    """Match detections and true boxes.

    Args:
        found: detections.
        true: true boxes.
        thresholds: (T,) least overlap of a pair.
    """
    # COCO takes an overlap a hair below 1 as equal to a threshold of 1.
    least = np.minimum(thresholds, 1 - 1e-10)
    shape = (len(true.ignored), len(thresholds))
    hit = np.zeros((*shape, len(found.cells)), bool)
    excused = np.zeros_like(hit)
    taken = np.zeros((len(true.cells), *shape), bool)
    # (G, A, 1), as the table of pairs below is laid out.
    ignored = true.ignored.T[:, :, None]
    pairs = _pairs(found, true, float(least.min()))
    for detections, table, overlaps in _rounds(found, pairs):
        # (n, k, A, T), n detections of different cells with up to k true boxes each.
        usable = overlaps[:, :, None, None] >= least
        usable = usable & ~(taken[table] & ~true.crowd[table][:, :, None, None])
        # 2: counted, 1: not counted, 0: too far or taken. Of equal ones argmax takes the first,
        # which overlaps most.
        worth = usable * np.where(ignored[table], 1, 2).astype(np.int8)
        chosen = worth.argmax(1)
        value = np.take_along_axis(worth, chosen[:, None], axis=1)[:, 0]
        hit[:, :, detections] = np.moveaxis(value == 2, 0, -1)
        excused[:, :, detections] = np.moveaxis(value == 1, 0, -1)
        row, area, level = np.nonzero(value)
        taken[table[row, chosen[row, area, level]], area, level] = True
    return Matches(hit, excused)


def _pairs(found: Found, true: Truths, least: float) -> _Pairs:
    """Find the pairs of one cell that overlap at least so much."""
    start = np.searchsorted(true.cells, found.cells, side="left")
    counts = np.searchsorted(true.cells, found.cells, side="right") - start
    with_truth = np.flatnonzero(counts)
    ends = np.cumsum(counts[with_truth])
    none = np.zeros(0, np.int64)
    parts = [_Pairs(none, none, np.zeros(0))]
    first = 0
    while first < len(with_truth):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, side="right")))
        some = with_truth[first:last]
        detections = np.repeat(some, counts[some])
        steps = np.arange(len(detections)) - np.repeat(
            np.cumsum(counts[some]) - counts[some], counts[some]
        )
        truths = np.repeat(start[some], counts[some]) + steps
        overlaps = row_overlaps(
            found.boxes_xyxy[detections], true.boxes_xyxy[truths], true.crowd[truths]
        )
        enough = overlaps >= least
        parts.append(_Pairs(detections[enough], truths[enough], overlaps[enough]))
        first = last
    near = np.concatenate([part.found for part in parts])
    true_boxes = np.concatenate([part.true for part in parts])
    overlaps = np.concatenate([part.overlaps for part in parts])
    # Of equal overlaps COCO takes the last true box.
    order = np.lexsort((-true_boxes, -overlaps, near))
    return _Pairs(near[order], true_boxes[order], overlaps[order])


def row_overlaps(boxes: _Floats, own: _Floats, crowd: _Flags) -> _Floats:
    """IoU of each row of `boxes` with that of `own`, (n,); with a crowd, the part that lies in it.

    The order of the sums is pycocotools', so that the last bit agrees where boxes are whole pixels.
    """
    sides = np.minimum(boxes[:, 2:], own[:, 2:]) - np.maximum(boxes[:, :2], own[:, :2])
    shared = np.where((sides > 0).all(1), sides[:, 0] * sides[:, 1], 0.0)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    own_area = np.prod(own[:, 2:] - own[:, :2], axis=1)
    whole = np.where(crowd, area, area + own_area - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=shared > 0)


def _rounds(
    found: Found, pairs: _Pairs
) -> Iterator[tuple[_Numbers, _Numbers, NDArray[np.float64]]]:
    """Give detections of different cells that may be matched together, cells' best ones first.

    Yields:
        Detections (n,), the true boxes of their pairs (n, k) and the overlaps (n, k), those that
        overlap most first; rows with fewer pairs end in overlaps of -1.
    """
    detections, starts, counts = np.unique(pairs.found, return_index=True, return_counts=True)
    cells = found.cells[detections]
    _, cell_starts, cell_counts = np.unique(cells, return_index=True, return_counts=True)
    turn = np.arange(len(cells)) - np.repeat(cell_starts, cell_counts)
    # Rows of like width share a table, so that a crowded picture does not widen those of others.
    width = np.int64(1) << np.ceil(np.log2(np.maximum(counts, 1))).astype(np.int64)
    order = np.lexsort((width, turn))
    bounds = np.flatnonzero(
        np.diff(turn[order], prepend=-1) | np.diff(width[order], prepend=0)
    ).tolist()
    for begin, end in itertools.pairwise([*bounds, len(order)]):
        rows = order[begin:end]
        columns = np.arange(counts[rows].max())
        inside = columns < counts[rows][:, None]
        places = np.where(inside, starts[rows][:, None] + columns, 0)
        overlaps = np.where(inside, pairs.overlaps[places], -1.0)
        yield detections[rows], pairs.true[places], overlaps
