"""Anchor boxes: one square per location of each pyramid level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def level_anchors(
    map_size: tuple[int, int],
    stride: int,
    anchor_scale: float,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Build the anchors of a level: squares with sides of anchor_scale * stride pixels.

    Returns:
        (H * W, 4) float32 half-open pixel coordinates, row-major, not clipped to the image. For
        stride 8 and scale 8, the first anchor is (-28, -28, 36, 36). The published model stores it
        as the inclusive box (-28, -28, 35, 35).
    """
    height, width = map_size
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) * stride
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) * stride
    middles = torch.stack(
        [x.expand(height, width), y[:, None].expand(height, width)], dim=-1
    ).reshape(height * width, 2)
    half = anchor_scale * stride / 2
    return torch.cat([middles - half, middles + half], dim=1)


def pyramid_anchors(
    map_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    anchor_scale: float,
    *,
    device: torch.device | str | None = None,
) -> list[Tensor]:
    """Build the anchors of all levels; see `level_anchors`."""
    return [
        level_anchors(size, stride, anchor_scale, device=device)
        for size, stride in zip(map_sizes, strides, strict=True)
    ]
