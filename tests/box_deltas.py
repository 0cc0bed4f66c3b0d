"""Inverse of `fiber.ops.boxes.decode_deltas`."""

import torch
from torch import Tensor

from fiber.ops.boxes import DELTA_WEIGHTS, centers


def encode_deltas(boxes_xyxy: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Encode boxes of positive size relative to their anchors.

    Returns:
        (..., 4) deltas: center offsets over anchor sizes, times 10; log size ratios, times 5.

    Source: Faster R-CNN (Ren et al. 2015), weights as published by FIBER.
    """
    anchor_sizes = anchors_xyxy[..., 2:] - anchors_xyxy[..., :2]
    sizes = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    offsets = (centers(boxes_xyxy) - centers(anchors_xyxy)) / anchor_sizes
    deltas = torch.cat([offsets, torch.log(sizes / anchor_sizes)], dim=-1)
    return deltas * deltas.new_tensor(DELTA_WEIGHTS)
