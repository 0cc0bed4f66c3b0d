"""Losses of the masks of boxes, at points around each box.

Shapes: B images, A anchors over all levels, G boxes, P points, N anchors assigned to a box with a
mask, M channels of mask features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.losses.distributed import wide
from fiber.losses.masks.pixel_losses import mask_bce, mask_dice
from fiber.models.features import MaskOutput
from fiber.ops.masks import enlarged_boxes, masks_at_points

#: Points along a side of the region in which the masks of a box are compared.
POINTS_PER_SIDE = 16


class BoxMasks(NamedTuple):
    """Boxes of a batch with their masks, as in `fiber.data.GroundingMasksBatch`."""

    #: (G, 4), half-open pixel coordinates in the transformed image, ordered by image.
    boxes_xyxy: Tensor
    #: (B,) int64.
    boxes_per_image: Tensor
    #: (G, H, ceil(W / 8)) uint8; all 0 for a box without a mask, which has no losses.
    box_masks: Tensor


class Assigned(NamedTuple):
    """Anchors that are assigned to a box: (N,) int64 indices of each."""

    image: Tensor
    anchor: Tensor
    box: Tensor


def box_mask_losses(
    masks: MaskOutput, anchors_xyxy: Tensor, batch: BoxMasks, assigned: Assigned
) -> dict[str, Tensor]:
    """Compare the mask of each anchor with that of its box.

    Points are a regular grid over the box and a margin around it: within, a mask follows the
    thing, and outside, it ends even if the predicted box does not.

    Args:
        masks: masks of the batch.
        anchors_xyxy: (A, 4) anchors of all levels.
        batch: boxes with masks.
        assigned: anchors that are assigned to a box.

    Returns:
        Float32 scalars `mask_bce` and `mask_dice`, sums over anchors of means over points.
    """
    points = grid_points(enlarged_boxes(batch.boxes_xyxy.float()))
    targets = masks_at(batch.box_masks, points)
    has_mask = (batch.box_masks.flatten(1) != 0).any(1)[assigned.box]
    image, anchor, box = (part[has_mask] for part in assigned)
    features = features_at(wide(masks.features), points, batch.boxes_per_image, masks.stride)
    embeddings = wide(torch.cat(masks.embeddings, dim=1)[image, anchor])
    logits = masks_at_points(embeddings, features[box], points[box], anchors_xyxy[anchor])
    wanted = targets[box].to(logits.dtype)
    return {
        "mask_bce": mask_bce(logits, wanted).sum(),
        "mask_dice": mask_dice(logits, wanted).sum(),
    }


def grid_points(boxes_xyxy: Tensor) -> Tensor:
    """Return the centers of a regular grid of cells in each box: (G, 4) -> (G, P, 2)."""
    steps = torch.arange(POINTS_PER_SIDE, device=boxes_xyxy.device) + 0.5
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    shares = torch.stack((columns, rows), -1).flatten(0, 1) / POINTS_PER_SIDE
    low, high = boxes_xyxy[:, None, :2], boxes_xyxy[:, None, 2:]
    return low + shares * (high - low)


def masks_at(packed: Tensor, points: Tensor) -> Tensor:
    """Look up packed masks at the pixels of points; False outside of the image.

    Args:
        packed: (G, H, ceil(W / 8)) uint8.
        points: (G, P, 2) in pixels.

    Returns:
        (G, P) bool.
    """
    height, stride = packed.shape[1:]
    column, row = points.floor().long().unbind(-1)
    is_inside = (column >= 0) & (column < 8 * stride) & (row >= 0) & (row < height)
    column, row = column.clamp(0, 8 * stride - 1), row.clamp(0, height - 1)
    places = row * stride + column // 8
    found = packed.flatten(1).gather(1, places).long()
    return ((found >> (7 - column % 8)) & 1).bool() & is_inside


def features_at(features: Tensor, points: Tensor, counts: Tensor, stride: int) -> Tensor:
    """Interpolate features at the points of boxes, bilinearly; beyond the border they are 0.

    Args:
        features: (B, M, h, w).
        points: (G, P, 2) in pixels, ordered by image.
        counts: (B,) number of boxes of each image.
        stride: stride of the features in pixels.

    Returns:
        (G, P, M).
    """
    height, width = features.shape[2:]
    size = points.new_tensor([width * stride, height * stride])
    places = 2 * points / size - 1
    found = [
        # (1, M, g, P) -> (g, P, M)
        F.grid_sample(own[None], some[None], align_corners=False)[0].permute(1, 2, 0)
        for own, some in zip(features, places.split(counts.tolist()), strict=True)
    ]
    return torch.cat(found)
