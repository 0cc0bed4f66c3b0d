"""Key masks and dropout for cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class KeyMask:
    """Keys that each sample attends to.

    At most one of lengths, mask and sizes is set; if none is, samples attend to all keys. Masked
    keys are not read, so they may hold any value, including NaN.

    Attributes:
        lengths: (B,) integer; sample b attends to its first lengths[b] keys.
        mask: (B, m) bool, True = attend.
        sizes: (B, 2) integer (height, width) of each sample's valid region, in the top left corner
            of the key map.
        map_size: (H, W) with H * W = m; required with sizes.
    """

    lengths: Tensor | None = None
    mask: Tensor | None = None
    sizes: Tensor | None = None
    map_size: Sequence[int] | None = None

    def as_bool(self, num_keys: int) -> Tensor | None:
        """Return a (B, m) bool mask (True = attend), or None if samples attend to all keys."""
        if self.mask is not None:
            return self.mask
        if self.lengths is not None:
            if self.lengths.device.type == "cpu" and bool((self.lengths >= num_keys).all()):
                return None
            return torch.arange(num_keys, device=self.lengths.device) < self.lengths[:, None]
        if self.sizes is None or self.map_size is None:
            return None
        height, width = self.map_size
        device = self.sizes.device
        rows = torch.arange(height, device=device)[:, None] < self.sizes[:, :1, None]
        columns = torch.arange(width, device=device) < self.sizes[:, 1:, None]
        return (rows & columns).flatten(1)


@dataclass(frozen=True, eq=False)
class Dropout:
    """Dropout of attention weights.

    Attributes:
        p: probability of dropping a weight, 0 <= p < 1.
        seed: (1,) int64 that determines the dropped weights; required if p > 0.
    """

    p: float = 0.0
    seed: Tensor | None = None


ALL_KEYS = KeyMask()
NO_DROPOUT = Dropout()
