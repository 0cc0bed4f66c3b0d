"""Anchor boxes: one square per location of each pyramid level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def level_sizes(height: int, width: int, strides: Sequence[int]) -> list[tuple[int, int]]:
    """Return the (height, width) of each level for images of height x width pixels.

    Image sides must be multiples of the third stride, which is that of the encoder's last stage.
    """
    sizes = [(height // stride, width // stride) for stride in strides[:3]]
    for _ in strides[3:]:
        # Half of the previous level, rounded up.
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


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
    import torch

    y, x = (torch.arange(size, dtype=torch.float32, device=device) for size in map_size)
    return _anchors(torch.stack, torch.cat, y, x, stride, anchor_scale)


def level_anchor_array(map_size: tuple[int, int], stride: int, anchor_scale: float) -> np.ndarray:
    """Build the anchors of a level as an array of numpy; see `level_anchors`."""
    y, x = (np.arange(size, dtype=np.float32) for size in map_size)
    return _anchors(np.stack, np.concatenate, y, x, stride, anchor_scale)


def _anchors(stack: Any, concat: Any, y: Any, x: Any, stride: int, anchor_scale: float) -> Any:
    """Build anchors from the indices of rows and columns, with the functions of their library."""
    x, y = (x + 0.5) * stride, (y + 0.5) * stride
    # Broadcast against each other: (H, W, 2).
    middles = stack([x[None] + 0 * y[:, None], y[:, None] + 0 * x[None]], -1).reshape(-1, 2)
    half = anchor_scale * stride / 2
    return concat([middles - half, middles + half], 1)


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
