"""Shift mask of Swin: keeps tokens from attending across the seams of the rolled map."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

#: Added to the scores of token pairs on opposite sides of a seam (Swin's constant).
SHIFT_MASK = -100.0


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def shift_mask(
    seams: tuple[bool, bool], window_size: int, shift: int, device: torch.device
) -> Tensor:
    """Compute the shift mask [N, N], which is -100 for token pairs on opposite sides of a seam."""
    after_seam = torch.arange(window_size, device=device) >= window_size - shift
    rows, columns = (after_seam & seam for seam in seams)
    regions = (2 * rows[:, None] + columns).flatten()
    return (regions[:, None] != regions).float() * SHIFT_MASK
