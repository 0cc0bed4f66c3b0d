"""Window attention as plain tensor operations, for `torch.export` and exporters of other formats.

Windows are gathered and scattered by computed row indices, so nothing about the size of the map is
decided while it is traced: sizes may be symbolic. Differentiable by autograd. Arguments are checked
in `op.py`.

Notation: B batch size, (H, W) map size, h heads, d head dim, w window size, N = w * w tokens per
window, n windows per map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .shift_mask import SHIFT_MASK


def window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    *,
    window_size: int,
    shift: int,
    limit_to_map: bool = False,
) -> Tensor:
    """Compute window attention without valid sizes; see `op.window_attention`.

    With `limit_to_map`, window size and shift depend on the size of the map, as in Swin: windows
    are at most as large as the longer side, and are not shifted if the shorter side is at most one
    window. `bias_table` is that of `window_size`. The result is the same as that of a smaller
    window with the inner part of the table.
    """
    batch, height, width, _, heads, depth = qkv.shape
    device, tokens = qkv.device, window_size**2
    step: int | Tensor = shift
    visible = None
    if limit_to_map:
        sides = [_as_tensor(side, device) for side in (height, width)]
        step = shift * (torch.minimum(*sides) > window_size).long()
        # False at positions of a window that a smaller one does not have.
        ticks = torch.arange(window_size, device=device) < torch.maximum(*sides)
        visible = (ticks[:, None] & ticks).flatten()
    rows = _Axis(height, window_size, step, device)
    columns = _Axis(width, window_size, step, device)
    # (n, N) place in the map of each token of a window.
    places = _pairs(rows.source, columns.source, width).flatten(2).flatten(0, 1)
    gathered = qkv.flatten(3).flatten(1, 2).index_select(1, places.flatten())
    if rows.is_padded or columns.is_padded:
        inside = _pairs(rows.inside.long(), columns.inside.long(), 1).reshape(-1) == 2
        gathered = torch.where(inside[:, None], gathered, qkv_bias.to(qkv.dtype).flatten())
    # (B, n N, 3 h d) -> 3 x (B, n, h, N, d)
    windows = gathered.reshape(batch, places.shape[0], tokens, 3, heads, depth)
    query, key, value = windows.permute(3, 0, 1, 4, 2, 5).unbind(0)
    scores = (query * depth**-0.5) @ key.transpose(-2, -1)
    scores = scores.to(torch.promote_types(qkv.dtype, torch.float32))
    scores = scores + _position_bias(bias_table, window_size).to(scores.dtype)
    if shift:
        regions = _pairs(rows.is_after.long(), columns.is_after.long(), 2).flatten(2).flatten(0, 1)
        apart = regions[:, :, None] != regions[:, None]
        # (n, 1, N, N)
        scores = scores + (apart.to(scores.dtype) * SHIFT_MASK)[:, None]
    if visible is not None:
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    attended = scores.softmax(-1).to(value.dtype) @ value
    # (B, n, h, N, d) -> (B, n N, h d)
    attended = attended.transpose(2, 3).reshape(batch, places.shape[0] * tokens, heads * depth)
    # (H, W) row of each token of the map among those of all windows.
    first = rows.window[:, None] * columns.count + columns.window
    back = first * tokens + rows.tick[:, None] * window_size + columns.tick
    out = attended.index_select(1, back.flatten())
    return out.reshape(batch, height, width, heads, depth)


class _Axis:
    """Windows along one axis of a map, after padding to whole windows and a roll."""

    def __init__(self, size: int, window: int, step: int | Tensor, device: torch.device) -> None:
        #: Number of windows.
        self.count = (size + window - 1) // window
        whole = self.count * window
        #: False if it is known that no padding is needed.
        self.is_padded = not (isinstance(size, int) and size % window == 0)
        # (windows, w) position in the rolled map.
        position = torch.arange(self.count, device=device)[:, None] * window
        position = position + torch.arange(window, device=device)
        # A remainder, but one that exporters take for symbolic sizes.
        rolled = position + step
        rolled = rolled - whole * (rolled >= whole).long()
        #: (windows, w) bool, True unless the position is padding.
        self.inside = rolled < size
        #: (windows, w) position in the map; that of padding is the last one.
        self.source = rolled.clamp(max=size - 1) if self.is_padded else rolled
        #: (windows, w) bool, True if the roll has brought the position to the other side.
        self.is_after = position >= whole - step
        # Positions of the map after the roll.
        own = torch.arange(size, device=device) - step
        own = own + whole * (own < 0).long()
        #: (size,) window, and position in it, of each position of the map.
        self.window, self.tick = own // window, own % window


def _pairs(rows: Tensor, columns: Tensor, factor: int) -> Tensor:
    """Combine values of rows (y, w) and columns (x, w): (y, x, w, w) of rows * factor + columns."""
    return rows[:, None, :, None] * factor + columns[None, :, None, :]


def _position_bias(table: Tensor, window_size: int) -> Tensor:
    """Look up the bias of each pair of tokens of a window: (h, N, N)."""
    ticks = torch.arange(window_size, device=table.device)
    offset = ticks[:, None] - ticks + window_size - 1
    rows = offset[:, None, :, None] * (2 * window_size - 1) + offset[None, :, None, :]
    tokens = window_size**2
    return table.index_select(0, rows.flatten()).t().reshape(-1, tokens, tokens)


def _as_tensor(size: int, device: torch.device) -> Tensor:
    """Convert a size, which may be symbolic, to a scalar tensor."""
    return torch.scalar_tensor(size, dtype=torch.int64, device=device)
