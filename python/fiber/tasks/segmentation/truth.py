"""Ground truth of an image, decoded from the masks of its record."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fiber.data.masks.codec import decode_masks
from fiber.data.record import Record


class TrueImage(NamedTuple):
    """Masks of an image and of its phrases."""

    #: (height, width) in pixels.
    size: tuple[int, int]
    #: (M, H, W) bool, (M,) int64 classes, and (M,) bool, True for a crowd.
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    #: (P, H, W) bool, the union of the masks of each phrase.
    phrases: NDArray[np.bool_]


def true_image(record: Record, size: tuple[int, int]) -> TrueImage:
    """Decode the masks of a record whose stored image has (height, width).

    Raises:
        ValueError: if a mask is invalid, or of another size.
    """
    masks: NDArray[np.bool_] = decode_masks(record.masks, *size)
    labels = np.asarray(record.mask_labels, np.int64)
    crowd = np.asarray(record.mask_crowd or [False] * len(labels), bool)
    phrases = np.zeros((len(record.phrases), *size), bool)
    for union, chosen in zip(phrases, record.phrase_masks, strict=True):
        union[:] = masks[list(chosen)].any(0)
    return TrueImage(size, masks, labels, crowd, phrases)
