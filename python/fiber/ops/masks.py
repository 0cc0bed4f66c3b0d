"""Masks of images, as logits and as bits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize mask logits or features: bicubic with antialiasing, (B, C, H, W) -> (B, C, *size)."""
    return F.interpolate(masks, size, mode="bicubic", align_corners=False, antialias=True)


def mask_boxes(masks: Tensor) -> Tensor:
    """Compute the half-open xyxy boxes of (N, H, W) bool masks: (N, 4) float32; 0 if empty."""
    boxes = torch.zeros(len(masks), 4, device=masks.device)
    for axis, (first, last) in ((2, (1, 3)), (1, (0, 2))):
        hit = masks.any(axis)
        index = torch.arange(hit.shape[1], device=masks.device)
        size = hit.shape[1]
        found = hit.any(1)
        boxes[:, first] = torch.where(hit, index, size).amin(1).float() * found
        boxes[:, last] = torch.where(hit, index + 1, 0).amax(1).float()
    return boxes
