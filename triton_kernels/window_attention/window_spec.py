"""How a map is cut into windows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class WindowSpec:
    """Window size, shift and the samples' own map sizes.

    Attributes:
        window_size: w, side of a window in tokens.
        shift: roll of the map in tokens, 0 <= shift < w.
        valid_sizes: [B, 2] integer (height, width) of each sample's own map, which starts in the
            top left corner. None: the whole map is valid.
    """

    window_size: int
    shift: int
    valid_sizes: Tensor | None = None
