"""Non-maximum suppression (NMS) within labels."""

from __future__ import annotations

from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Keep the best of overlapping boxes of each label.

    Args:
        boxes: (n, 4) xyxy.
        scores: (n,).
        labels: (n,) int64; boxes of different labels do not suppress each other.
        threshold: IoU above which the lower-scoring of two boxes is removed.

    Returns:
        Indices of the boxes that are kept, best first.
    """
    if len(labels.unique()) == len(labels):
        return scores.argsort(descending=True, stable=True)
    # Takes as long to import as torch, and one box for each phrase needs no NMS.
    from torchvision.ops import batched_nms

    # torchvision offsets boxes by label; in float64 the offset causes no rounding.
    return batched_nms(boxes.double(), scores.double(), labels, threshold)
