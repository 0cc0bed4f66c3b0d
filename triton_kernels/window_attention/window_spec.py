"""Parameters of the window partition."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class WindowSpec:
    """Window size, shift and valid sizes; see `op.window_attention`."""

    window_size: int
    shift: int
    valid_sizes: Tensor | None = None
