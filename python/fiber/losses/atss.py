"""Assignment of anchors to boxes by adaptive training sample selection (ATSS).

Shapes: B images, A anchors over all levels, G boxes in the batch, K candidates per box.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from fiber.ops.boxes import centers, to_inclusive

#: Minimum distance in pixels of an anchor's center from every side of its box (published value).
MIN_INSIDE_PIXELS = 0.01


def atss_assign(
    anchors: Sequence[Tensor],
    boxes_xyxy: Tensor,
    boxes_per_image: Tensor,
    *,
    top_k: int = 9,
    inside: Tensor | None = None,
) -> Tensor:
    """Assign anchors to boxes using statistics of their IoUs.

    The candidates of a box are, on each level, the `top_k` anchors whose centers are nearest to the
    center of the box. The threshold is the mean plus the (unbiased) standard deviation of the
    candidates' IoUs. A candidate is positive if its IoU reaches the threshold and its center is
    inside the box. An anchor that is positive for several boxes is assigned to the one with the
    highest IoU.

    Args:
        anchors: (H_l * W_l, 4) per level, half-open pixel coordinates, the same for all images.
        boxes_xyxy: (G, 4) half-open pixel coordinates, ordered by image.
        boxes_per_image: (B,) int64.
        top_k: candidates per level.
        inside: (B, A) bool mask of anchors inside each image, for mixed-size batches. None if all
            are inside.

    Returns:
        (B, A) int64: index into the G boxes, or -1 if unassigned.

    Source: Zhang et al. 2020, with the constants of the published model.
    """
    batch, num_boxes = len(boxes_per_image), len(boxes_xyxy)
    all_anchors = torch.cat(list(anchors))
    device = all_anchors.device
    assigned = torch.full((batch, len(all_anchors)), -1, dtype=torch.int64, device=device)
    if num_boxes == 0:
        return assigned
    images = torch.repeat_interleave(
        torch.arange(batch, device=device), boxes_per_image, output_size=num_boxes
    )
    usable = None if inside is None else inside[images]
    overlaps = _candidate_overlaps(anchors, all_anchors, boxes_xyxy, top_k, usable)
    # Index of each box within its image, to arrange the G rows as (B, most boxes per image).
    starts = boxes_per_image.cumsum(0) - boxes_per_image
    index_in_image = torch.arange(num_boxes, device=device) - starts[images]
    # Computing the table size requires a device synchronization.
    most = int(boxes_per_image.max())
    table = overlaps.new_full((batch, most, len(all_anchors)), -1.0)
    table[images, index_in_image] = overlaps
    best, best_box = table.max(dim=1)
    return torch.where(best >= 0, best_box + starts[:, None], assigned)


def _candidate_overlaps(
    anchors: Sequence[Tensor],
    all_anchors: Tensor,
    boxes_xyxy: Tensor,
    top_k: int,
    usable: Tensor | None,
) -> Tensor:
    """Compute the (G, A) IoUs of boxes and their positive candidates, with -1 elsewhere.

    `usable` is a (G, A) bool mask of the anchors inside each box's image; None if all are.
    """
    overlaps = box_iou(boxes_xyxy, all_anchors)
    anchor_centers = centers(all_anchors)
    offsets = centers(boxes_xyxy)[:, None] - anchor_centers[None]
    distances = offsets.square().sum(-1).sqrt()
    if usable is not None:
        distances = distances.masked_fill(~usable, torch.inf)
    nearest, start = [], 0
    for level in anchors:
        near = distances[:, start : start + len(level)]
        nearest.append(near.topk(min(top_k, len(level)), dim=1, largest=False).indices + start)
        start += len(level)
    candidates = torch.cat(nearest, dim=1)  # (G, K)
    candidate_overlaps = overlaps.gather(1, candidates)
    if usable is None:
        threshold = candidate_overlaps.mean(1) + candidate_overlaps.std(1)
    else:
        # A level may have fewer than `top_k` anchors inside the image.
        real = usable.gather(1, candidates)
        count = real.sum(1)
        mean = (candidate_overlaps * real).sum(1) / count
        square = ((candidate_overlaps - mean[:, None]) * real).square().sum(1)
        threshold = mean + (square / (count - 1)).sqrt()
    # The published code uses inclusive corners.
    middles = centers(to_inclusive(all_anchors))[candidates]
    corners = to_inclusive(boxes_xyxy)[:, None]
    margins = torch.cat([middles - corners[..., :2], corners[..., 2:] - middles], dim=-1)
    taken = (candidate_overlaps >= threshold[:, None]) & (margins.amin(-1) > MIN_INSIDE_PIXELS)
    values = torch.where(taken, candidate_overlaps, -1.0)
    return torch.full_like(overlaps, -1.0).scatter_(1, candidates, values)
