"""Non-maximum suppression (NMS) within labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Keep the best of overlapping boxes of each label.

    Args:
        boxes: (n, 4) xyxy, a tensor or, as all others then, an array of numpy.
        scores: (n,).
        labels: (n,) int64; boxes of different labels do not suppress each other.
        threshold: IoU above which the lower-scoring of two boxes is removed.

    Returns:
        Indices of the boxes that are kept, best first.
    """
    given: Any = boxes
    if isinstance(given, np.ndarray):
        return _nms_array(given, scores, labels, threshold)
    if len(labels.unique()) == len(labels):
        return scores.argsort(descending=True, stable=True)
    # Takes as long to import as torch, and one box for each phrase needs no NMS.
    from torchvision.ops import batched_nms

    # torchvision offsets boxes by label; in float64 the offset causes no rounding.
    return batched_nms(boxes.double(), scores.double(), labels, threshold)


def _nms_array(boxes: np.ndarray, scores: Any, labels: Any, threshold: float) -> Any:
    order = np.argsort(-scores, kind="stable")
    boxes, labels = boxes[order].astype(np.float64), labels[order]
    low, high = boxes[:, :2], boxes[:, 2:]
    areas = (high - low).prod(1)
    left = np.ones(len(order), bool)
    for row in range(len(order)):
        if not left[row]:
            continue
        others = row + 1 + np.flatnonzero(left[row + 1 :] & (labels[row + 1 :] == labels[row]))
        sides = np.minimum(high[others], high[row]) - np.maximum(low[others], low[row])
        shared = np.maximum(sides, 0).prod(1)
        # Empty boxes share nothing and have no IoU: 0 / 0 is above no threshold.
        with np.errstate(invalid="ignore"):
            left[others] = ~(shared / (areas[others] + areas[row] - shared) > threshold)
    return order[left]
