"""Resizing of masks to a whole fraction of their size, for exported graphs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shrink_masks(masks: Tensor, factor: int) -> Tensor:
    """Resize (B, C, H, W) to (B, C, H / factor, W / factor), as `resize_masks` does.

    It computes by convolutions of rows and columns, whose sizes may be symbolic and which other
    formats have, too. Near borders, the weights inside of the map sum to 1.
    """
    # The weights of output i are centered on factor * (i + 1 / 2) and reach 2 * factor pixels.
    offsets = (torch.arange(4 * factor, dtype=masks.dtype) + 0.5) / factor - 2
    kernel = _cubic(offsets).to(masks.device)
    found = masks.flatten(0, 1).unsqueeze(1)
    padding = 3 * factor // 2
    for shape, steps, pads in (
        ((1, 1, -1, 1), (factor, 1), (padding, 0)),
        ((1, 1, 1, -1), (1, factor), (0, padding)),
    ):
        weights = kernel.reshape(shape)
        totals = F.conv2d(torch.ones_like(found[:1]), weights, stride=steps, padding=pads)
        found = F.conv2d(found, weights, stride=steps, padding=pads) / totals
    return found.squeeze(1).unflatten(0, masks.shape[:2])


def _cubic(places: Tensor) -> Tensor:
    """Compute the cubic kernel of antialiased resizing (Keys 1981, a = -1 / 2) at -2 to 2."""
    x = places.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
