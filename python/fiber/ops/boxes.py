"""Geometry of boxes as tensors.

Every box here is float pixels, half-open xyxy: (x0, y0) is its first corner, (x1, y1) the corner
just past its last pixel, so that its width is x1 - x0.

The published model works on boxes whose last corner lies *on* the last pixel, with widths of
x1 - x0 + 1. Its coder, IoU and non-maximum suppression are then those of half-open boxes, number
for number. Three places do not carry over, because there it leaves the 1 out; they call
`to_inclusive` and say so: the test whether an anchor's centre lies in a box
(`fiber.losses.atss`), the centerness target and the GIoU loss (`fiber.losses.grounding`).

Letters: A anchors, G boxes; N any number of boxes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Factors on the deltas (x, y, width, height), as published.
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
#: Largest log of predicted size over anchor size, as published.
MAX_LOG_SCALE = math.log(1000.0 / 16.0)


def to_inclusive(boxes_xyxy: Tensor) -> Tensor:
    """Move the last corner of (..., 4) half-open boxes onto their last pixel.

    The published model's own box convention; see the module's docstring.
    """
    return boxes_xyxy - boxes_xyxy.new_tensor([0.0, 0.0, 1.0, 1.0])


def centers(boxes_xyxy: Tensor) -> Tensor:
    """Centres (..., 2) as (x, y) of (..., 4) boxes, in pixels."""
    return (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) * 0.5


def areas(boxes_xyxy: Tensor) -> Tensor:
    """Areas (...) of (..., 4) boxes, in square pixels."""
    sizes = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return sizes[..., 0] * sizes[..., 1]


def pairwise_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Intersection over union of every box of one set with every box of another.

    Args:
        first_xyxy: (N, 4) boxes.
        second_xyxy: (G, 4) boxes.

    Returns:
        (N, G) float; 0 where both boxes are empty.
    """
    low = torch.maximum(first_xyxy[:, None, :2], second_xyxy[None, :, :2])
    high = torch.minimum(first_xyxy[:, None, 2:], second_xyxy[None, :, 2:])
    sides = (high - low).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    union = areas(first_xyxy)[:, None] + areas(second_xyxy)[None, :] - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def paired_giou(first_xyxy: Tensor, second_xyxy: Tensor, *, epsilon: float = 1e-7) -> Tensor:
    """Generalised IoU of each box of one set with its partner in another.

    Args:
        first_xyxy: (N, 4) boxes; a last corner before the first counts as on it.
        second_xyxy: (N, 4) boxes.
        epsilon: added to union and enclosing area, in square pixels.

    Returns:
        (N,) in (-1, 1].

    Source: Rezatofighi et al. 2019.
    """
    low, high = first_xyxy[:, :2], torch.maximum(first_xyxy[:, :2], first_xyxy[:, 2:])
    other_low, other_high = second_xyxy[:, :2], second_xyxy[:, 2:]
    sides = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0)
    intersection = sides[:, 0] * sides[:, 1]
    union = (high - low).prod(1) + (other_high - other_low).prod(1) - intersection + epsilon
    enclosing = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).prod(1) + epsilon
    return intersection / union - (enclosing - union) / enclosing


def encode_deltas(boxes_xyxy: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Write boxes as deltas from their anchors.

    Args:
        boxes_xyxy: (..., 4) boxes of positive size.
        anchors_xyxy: (..., 4) their anchors.

    Returns:
        (..., 4): centre offsets in anchor sizes times 10, logs of size ratios times 5.

    Source: Faster R-CNN (Ren et al. 2015), weights as published by FIBER.
    """
    anchor_sizes = anchors_xyxy[..., 2:] - anchors_xyxy[..., :2]
    sizes = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    offsets = (centers(boxes_xyxy) - centers(anchors_xyxy)) / anchor_sizes
    deltas = torch.cat([offsets, torch.log(sizes / anchor_sizes)], dim=-1)
    return deltas * deltas.new_tensor(DELTA_WEIGHTS)


def decode_deltas(deltas: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Turn predicted deltas back into boxes.

    Args:
        deltas: (..., 4) as `encode_deltas` gives them; size logs are cut at log(1000 / 16).
        anchors_xyxy: (..., 4) anchors, broadcast against the deltas.

    Returns:
        (..., 4) half-open boxes in pixels, not clipped to the picture.
    """
    deltas = deltas / deltas.new_tensor(DELTA_WEIGHTS)
    anchor_sizes = anchors_xyxy[..., 2:] - anchors_xyxy[..., :2]
    middles = centers(anchors_xyxy) + deltas[..., :2] * anchor_sizes
    halves = torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * anchor_sizes * 0.5
    return torch.cat([middles - halves, middles + halves], dim=-1)


def clip_to_image(boxes_xyxy: Tensor, height: float, width: float) -> Tensor:
    """Clip (..., 4) boxes to a picture so that each keeps at least one pixel of it.

    A box wholly outside becomes a pixel of the border, as in the published model, so that scores
    and boxes stay in step.
    """
    upper = boxes_xyxy.new_tensor([width, height])
    low = torch.minimum(boxes_xyxy[..., :2].clamp(min=0), upper - 1)
    high = torch.minimum(boxes_xyxy[..., 2:].clamp(min=1), upper)
    return torch.cat([low, high], dim=-1)
