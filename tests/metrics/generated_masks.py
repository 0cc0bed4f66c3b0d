"""Generated segmentations of images, and predictions that are wrong in many ways."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Number of images on which metrics are compared with those of other packages.
IMAGES = 200
CLASSES, THINGS = 7, 4


class Segmented(NamedTuple):
    """Segments of an image: ids from 1, 0 is unlabeled."""

    ids: NDArray[np.int64]
    labels: dict[int, int]


def segmented(random: np.random.Generator, height: int, width: int) -> Segmented:
    """Paint rectangles of random classes over one another; some pixels stay unlabeled."""
    ids = np.zeros((height, width), np.int64)
    labels: dict[int, int] = {}
    for _ in range(random.integers(0, 9)):
        label = int(random.integers(CLASSES))
        # Stuff has one segment.
        stuff = [segment for segment, own in labels.items() if own == label and label >= THINGS]
        segment = stuff[0] if stuff else len(labels) + 1
        labels[segment] = label
        top, left = random.integers(height - 4), random.integers(width - 4)
        bottom, right = top + random.integers(3, height), left + random.integers(3, width)
        ids[top:bottom, left:right] = segment
    return Segmented(ids, {each: labels[each] for each in labels if (ids == each).any()})


def disturbed(random: np.random.Generator, truth: Segmented) -> Segmented:
    """Move, relabel, drop and add segments of a ground truth."""
    ids = np.roll(truth.ids, tuple(random.integers(-3, 4, 2)), (0, 1))
    labels = dict(truth.labels)
    for segment in list(labels):
        chance = random.random()
        if chance < 0.15:
            ids[ids == segment] = 0
        elif chance < 0.35:
            other = int(random.integers(CLASSES))
            if other < THINGS or other not in labels.values():
                labels[segment] = other
    added = max(labels, default=0) + 1
    ids[: random.integers(1, 12), : random.integers(1, 12)] = added
    labels[added] = int(random.integers(THINGS))
    return Segmented(ids, {each: labels[each] for each in labels if (ids == each).any()})


def generated(seed: int = 0, images: int = IMAGES) -> list[tuple[Segmented, Segmented]]:
    """Ground truth and prediction of each image; images have several sizes."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(images):
        height, width = random.integers(24, 72, 2)
        truth = segmented(random, height, width)
        found.append((truth, disturbed(random, truth)))
    return found
