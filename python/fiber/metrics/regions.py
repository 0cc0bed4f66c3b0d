"""Metrics of semantic maps and of masks of phrases, which do not depend on a matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: IoU from which on the mask of a phrase is right.
PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
#: Added to the union of a phrase's masks, as published, so that two empty masks have IoU 0.
_UNION_EPS = 1e-6
#: Class of pixels that are not evaluated.
IGNORED_CLASS = 255


@dataclass
class SemanticCounts:
    """Pixels of each pair of a true and a predicted class, summed over images."""

    num_classes: int
    #: (K, K), true classes in rows.
    pixels: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.pixels = np.zeros((self.num_classes, self.num_classes), np.int64)

    def add(self, found: ArrayLike, truth: ArrayLike, ignored: int = IGNORED_CLASS) -> None:
        """Count the pixels of an image.

        Args:
            found: (H, W) classes.
            truth: (H, W) classes; those of `ignored` are left out.
            ignored: class of pixels that are not evaluated.

        Raises:
            ValueError: if the maps differ in shape or have another class.
        """
        own, real = np.asarray(found, np.int64), np.asarray(truth, np.int64)
        if own.shape != real.shape:
            raise ValueError(f"found classes have shape {own.shape}, true ones {real.shape}")
        kept = real != ignored
        own, real = own[kept], real[kept]
        for name, values in (("found", own), ("true", real)):
            if values.size and not 0 <= values.min() <= values.max() < self.num_classes:
                wrong = values[(values < 0) | (values >= self.num_classes)][0]
                raise ValueError(
                    f"{name} class {wrong}: expected 0 to {self.num_classes - 1}"
                    f"{f' or {ignored}' if name == 'true' else ''}"
                )
        size = self.num_classes
        self.pixels += np.bincount(size * real + own, minlength=size**2).reshape(size, size)

    def join(self, other: SemanticCounts) -> None:
        """Add the counts of other images."""
        self.pixels += other.pixels

    def iou_by_class(self) -> NDArray[np.float64]:
        """Return the IoU of each class: (K,), NaN for classes that are not in the truth."""
        right, true, found = self._areas()
        with np.errstate(invalid="ignore"):
            return np.where(true > 0, right / (true + found - right), np.nan)

    def metrics(self) -> dict[str, float]:
        """Return means over classes, NaN if no pixel was evaluated.

        `miou` is the mean IoU over the classes that occur in the truth. `published_miou` divides
        its sum by the number of classes that occur in truth or prediction: a class that is
        predicted and never true counts as 0. `frequency_iou` is the mean weighted by true pixels;
        `accuracy` is the mean share of a class's pixels that are right, `pixel_accuracy` that of
        all pixels.
        """
        right, true, found = self._areas()
        is_true, total = true > 0, true.sum()
        if not total:
            names = ("miou", "published_miou", "frequency_iou", "accuracy", "pixel_accuracy")
            return dict.fromkeys(names, float("nan"))
        iou = self.iou_by_class()[is_true]
        return {
            "miou": float(iou.mean()),
            "published_miou": float(iou.sum() / ((true + found) > 0).sum()),
            "frequency_iou": float((iou * true[is_true] / total).sum()),
            "accuracy": float((right[is_true] / true[is_true]).mean()),
            "pixel_accuracy": float(right.sum() / total),
        }

    def _areas(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the pixels of each class that are right, true and found."""
        return np.diagonal(self.pixels), self.pixels.sum(1), self.pixels.sum(0)


def phrase_areas(found: ArrayLike, truth: ArrayLike) -> tuple[int, int]:
    """Count the pixels of both masks of a phrase, and of either: 2 x (H, W) bool.

    Raises:
        ValueError: if the masks differ in shape.
    """
    own, real = np.asarray(found, bool), np.asarray(truth, bool)
    if own.shape != real.shape:
        raise ValueError(f"the found mask has shape {own.shape}, the true one {real.shape}")
    both = int(np.count_nonzero(own & real))
    return both, int(np.count_nonzero(own)) + int(np.count_nonzero(real)) - both


def phrase_mask_metrics(areas: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Compute metrics of the masks of phrases.

    Args:
        areas: `phrase_areas` of each phrase.

    Returns:
        `ciou`, the sum of intersections over the sum of unions; `miou`, the mean IoU; and
        `precision_at_0.5` and so on, the share of phrases with at least this IoU. NaN if there are
        no phrases.
    """
    table = np.asarray(areas, np.float64).reshape(-1, 2)
    names = [f"precision_at_{threshold}" for threshold in PRECISION_THRESHOLDS]
    if not len(table):
        return dict.fromkeys(("ciou", "miou", *names), float("nan"))
    both, either = table[:, 0], table[:, 1]
    iou = both / (either + _UNION_EPS)
    return {
        "ciou": float(both.sum() / either.sum()) if either.any() else 0.0,
        "miou": float(iou.mean()),
        **{
            name: float((iou >= threshold).mean())
            for name, threshold in zip(names, PRECISION_THRESHOLDS, strict=True)
        },
    }
