"""Panoptic quality: PQ, SQ and RQ.

Source: Panoptic Segmentation (Kirillov et al. 2019); crowds and unlabeled pixels as in COCO's code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: IoU above which segments match; each matches at most one other then.
MATCHED_ABOVE = 0.5
#: Share of a segment in unlabeled or crowd pixels above which it is no false positive.
IGNORED_ABOVE = 0.5


@dataclass(frozen=True, kw_only=True)
class TrueSegments:
    """Ground truth of one image."""

    #: (H, W) ids of segments; other values are unlabeled pixels.
    ids: ArrayLike
    #: Class of each segment by id.
    labels: Mapping[int, int]
    #: Ids of crowds, which are neither found nor missed.
    crowd: AbstractSet[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class FoundSegments:
    """Segments found in one image."""

    #: (H, W) ids of segments; other values are pixels without a segment.
    ids: ArrayLike
    #: Class of each segment by id.
    labels: Mapping[int, int]


@dataclass
class PanopticCounts:
    """Matched, missed and wrong segments of each class, summed over images."""

    num_classes: int
    #: (K,) sums of the IoU of matched segments, and numbers of segments.
    overlap: NDArray[np.float64] = field(init=False)
    matched: NDArray[np.int64] = field(init=False)
    wrong: NDArray[np.int64] = field(init=False)
    missed: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.overlap = np.zeros(self.num_classes)
        self.matched, self.wrong, self.missed = np.zeros((3, self.num_classes), np.int64)

    def add(self, found: FoundSegments, truth: TrueSegments) -> None:
        """Count the segments of an image.

        Raises:
            ValueError: if the maps differ in shape, a segment has no pixel, or a class is not one
                of the `num_classes`.
        """
        own, own_labels = self._numbered(found.ids, found.labels, "found")
        real, real_labels = self._numbered(truth.ids, truth.labels, "true")
        if own.shape != real.shape:
            raise ValueError(f"found ids have shape {own.shape}, true ids {real.shape}")
        crowd = np.array([segment in truth.crowd for segment in truth.labels], bool)
        # Pixels of every pair of segments; the last row and column are those without a segment.
        rows, columns = len(own_labels) + 1, len(real_labels) + 1
        pixels = np.bincount((own * columns + real).ravel(), minlength=rows * columns)
        pixels = pixels.reshape(rows, columns)
        both, unlabeled = pixels[:-1, :-1], pixels[:-1, -1]
        own_area, real_area = pixels[:-1].sum(1), pixels[:, :-1].sum(0)
        either = own_area[:, None] + real_area - both - unlabeled[:, None]
        is_same = own_labels[:, None] == real_labels
        overlap = np.where(is_same & ~crowd, both / np.maximum(either, 1), 0.0)
        pairs = np.argwhere(overlap > MATCHED_ABOVE)
        hit, seen = np.zeros(rows - 1, bool), np.zeros(columns - 1, bool)
        hit[pairs[:, 0]], seen[pairs[:, 1]] = True, True
        np.add.at(self.overlap, own_labels[pairs[:, 0]], overlap[pairs[:, 0], pairs[:, 1]])
        ignored = unlabeled + (both * (is_same & crowd)).sum(1)
        is_wrong = ~hit & ~(ignored / np.maximum(own_area, 1) > IGNORED_ABOVE)
        for counts, labels in (
            (self.matched, own_labels[hit]),
            (self.wrong, own_labels[is_wrong]),
            (self.missed, real_labels[~seen & ~crowd]),
        ):
            counts += np.bincount(labels, minlength=self.num_classes)

    def join(self, other: PanopticCounts) -> None:
        """Add the counts of other images."""
        self.overlap += other.overlap
        self.matched += other.matched
        self.wrong += other.wrong
        self.missed += other.missed

    def _numbered(
        self, ids: ArrayLike, labels: Mapping[int, int], name: str
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number the segments of a map from 0, and pixels without one by the number of segments."""
        values, places = np.unique(np.asarray(ids), return_inverse=True)
        numbers = {segment: number for number, segment in enumerate(labels)}
        own = np.array([numbers.get(int(value), len(numbers)) for value in values], np.int64)
        if len(absent := numbers.keys() - {int(value) for value in values}):
            raise ValueError(f"{name} segment {min(absent)} has no pixel")
        for segment, label in labels.items():
            if not 0 <= label < self.num_classes:
                raise ValueError(
                    f"{name} segment {segment} has class {label}; expected 0 to"
                    f" {self.num_classes - 1}"
                )
        found = own[places].reshape(np.asarray(ids).shape)
        return found, np.array(list(labels.values()), np.int64)

    def metrics(self, is_thing: Sequence[bool] | None = None) -> dict[str, float]:
        """Average over the classes that occur: `pq`, `sq`, `rq`; NaN if there are none.

        Args:
            is_thing: for each class, True for things; adds `pq_things`, `pq_stuff` and so on.
        """
        found = self._means(np.ones(self.num_classes, bool))
        if is_thing is None:
            return found
        things = np.asarray(is_thing, bool)
        if things.shape != (self.num_classes,):
            raise ValueError(f"is_thing has {things.size} entries; expected {self.num_classes}")
        for name, chosen in (("things", things), ("stuff", ~things)):
            found |= {f"{key}_{name}": value for key, value in self._means(chosen).items()}
        return found

    def by_class(self) -> NDArray[np.float64]:
        """Return the PQ of each class: (K,), NaN for those that do not occur."""
        return self._ratios()[:, 0]

    def _ratios(self) -> NDArray[np.float64]:
        """Compute PQ, SQ and RQ of each class: (K, 3), NaN without segments."""
        total = self.matched + 0.5 * self.wrong + 0.5 * self.missed
        with np.errstate(invalid="ignore"):
            pq, rq = self.overlap / total, self.matched / total
        sq = self.overlap / np.maximum(self.matched, 1)
        return np.stack([pq, np.where(total > 0, sq, np.nan), rq], 1)

    def _means(self, chosen: NDArray[np.bool_]) -> dict[str, float]:
        ratios = self._ratios()[chosen]
        ratios = ratios[~np.isnan(ratios[:, 0])]
        means = ratios.mean(0) if len(ratios) else np.full(3, np.nan)
        return dict(zip(("pq", "sq", "rq"), means.tolist(), strict=True))
