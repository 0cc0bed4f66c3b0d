"""Overlaps of boxes in double precision, for metrics.

Boxes are half-open xyxy, in pixels or in units of the picture's sides: IoU and GIoU are the same in
both. Letters: N, G numbers of boxes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def as_boxes(boxes: ArrayLike) -> NDArray[np.float64]:
    """(N, 4) float64; an empty list becomes (0, 4).

    Raises:
        ValueError: if the shape is another.
    """
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"boxes have shape {array.shape}; expected (n, 4) xyxy")
    return array


def areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas (N,); 0 where a box ends before it starts."""
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)


def intersections(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas (N, G) shared by each box of `first` (N, 4) with each of `second` (G, 4)."""
    sides = [
        np.minimum(first[:, None, axis + 2], second[None, :, axis + 2])
        - np.maximum(first[:, None, axis], second[None, :, axis])
        for axis in (0, 1)
    ]
    return np.maximum(sides[0], 0) * np.maximum(sides[1], 0)


def pairwise_iou(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union (N, G); 0 where both boxes are empty."""
    first, second = as_boxes(first), as_boxes(second)
    shared = intersections(first, second)
    union = areas(first)[:, None] + areas(second)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def pairwise_giou(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Generalised IoU (N, G) in [-1, 1]; 0 where both boxes are the same point.

    Source: Rezatofighi et al. 2019.
    """
    first, second = as_boxes(first), as_boxes(second)
    shared = intersections(first, second)
    union = areas(first)[:, None] + areas(second)[None] - shared
    low = np.minimum(first[:, None, :2], second[None, :, :2])
    high = np.maximum(first[:, None, 2:], second[None, :, 2:])
    hull = np.prod(np.maximum(high - low, 0), axis=2)
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return iou - np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)
