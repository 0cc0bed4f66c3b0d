"""Which tokens stand in which window: index arithmetic instead of padding, rolling and cutting.

Letters: M tokens of the whole batch, B H W; N tokens of a window; nW windows of the whole batch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Whether a window holds the seam of a rolled map: (between its rows, between its columns).
SEAMS = ((False, False), (False, True), (True, False), (True, True))


class WindowRows(NamedTuple):
    """The windows of a batch; those with the same seams follow one another, in `SEAMS`' order."""

    #: (nW N,) int64, the token (of M) at each place of each window; 0 at a padded place.
    tokens: Tensor
    #: Places (of nW N) that are padded.
    padded: Tensor
    #: (M,) int64, the place of each token; 0 for one outside its sample's own map.
    places: Tensor
    #: Tokens (of M) outside their sample's own map.
    outside: Tensor
    #: Windows with each of `SEAMS`.
    counts: tuple[int, ...]
    #: `padded` once more, rising, where it can be searched without waiting for a device.
    padded_places: np.ndarray


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def window_rows(
    sizes: tuple[tuple[int, int], ...],
    map_size: tuple[int, int],
    window_size: int,
    shift: int,
    device: torch.device,
) -> WindowRows:
    """Cut every sample's own map, padded and rolled by itself, into windows.

    Args:
        sizes: (height, width) of each sample's own map, which starts in the tensor's first corner.
        map_size: (H, W) of the tensor.
        window_size: side of a window in tokens.
        shift: roll of the map in tokens.
        device: where the answer is used.
    """
    height, width = map_size
    kinds: list[list[np.ndarray]] = [[] for _ in SEAMS]
    for own in dict.fromkeys(sizes):
        samples = np.array([number for number, size in enumerate(sizes) if size == own])
        windows, seams = _windows(own, width, window_size, shift)
        for kind, chosen in zip(kinds, SEAMS, strict=True):
            same = windows[(seams == chosen).all(1)]
            # (samples, windows, N); -1 stays where the place is padded.
            moved = np.where(same < 0, same, same + samples[:, None, None] * (height * width))
            kind.append(moved.reshape(-1, window_size**2))
    by_kind = [np.concatenate(kind) if kind else np.empty((0, 1), np.int64) for kind in kinds]
    tokens = np.concatenate([each.ravel() for each in by_kind])
    padded = tokens < 0
    places = np.full(len(sizes) * height * width, -1)
    places[tokens[~padded]] = np.flatnonzero(~padded)
    outside = np.flatnonzero(places < 0)
    # By way of numpy, so that a default device, such as meta, has no part in it.
    tensors = [
        torch.from_numpy(each).to(device)
        for each in (tokens.clip(min=0), np.flatnonzero(padded), places.clip(min=0), outside)
    ]
    return WindowRows(
        *tensors,
        counts=tuple(len(each) for each in by_kind),
        padded_places=np.flatnonzero(padded),
    )


def _windows(
    own: tuple[int, int], width: int, window_size: int, shift: int
) -> tuple[np.ndarray, np.ndarray]:
    """Windows (n, N) of one map, as tokens of a tensor `width` wide, and their seams (n, 2)."""
    axes = []
    for side in own:
        count = -(-side // window_size)
        # (n, w): the row or column at each place of the rolled map, -1 where it is padding
        ticks = (np.arange(count * window_size) + shift) % max(1, count * window_size)
        ticks = np.where(ticks < side, ticks, -1).reshape(count, window_size)
        seam = (np.arange(count) == count - 1) & (shift > 0)
        axes.append((ticks, seam))
    (rows, row_seams), (columns, column_seams) = axes
    # (n, m, w, w)
    y, x = rows[:, None, :, None], columns[None, :, None, :]
    tokens = np.where((y < 0) | (x < 0), -1, y * width + x).reshape(-1, window_size**2)
    shape = (len(rows), len(columns))
    seams = np.stack(
        [np.broadcast_to(row_seams[:, None], shape), np.broadcast_to(column_seams, shape)], -1
    )
    return tokens, seams.reshape(-1, 2)


def to_windows(tokens: Tensor, padding: Tensor, rows: WindowRows) -> Tensor:
    """Bring tokens into their windows: (M, R) and (R,) for padded places -> (nW N, R)."""
    return _Moved.apply(tokens, padding, rows.tokens, rows.padded, rows.places, rows.outside)


def windows_piece(tokens: Tensor, padding: Tensor, rows: WindowRows, piece: slice) -> Tensor:
    """Some of the places that `to_windows` gives, without a gradient."""
    first, last = np.searchsorted(rows.padded_places, (piece.start, piece.stop)).tolist()
    padded = rows.padded[first:last] - piece.start
    return _moved(tokens, padding, rows.tokens[piece], padded)


def from_windows(windows: Tensor, rows: WindowRows) -> Tensor:
    """Bring tokens back: (nW N, R) -> (M, R); 0 for a token outside its sample's own map."""
    nothing = windows.new_zeros(windows.shape[1])
    return _Moved.apply(windows, nothing, rows.places, rows.outside, rows.tokens, rows.padded)


class _Moved(torch.autograd.Function):
    """Rows in another order, with a row of padding in some places.

    Every row that is not left out has one place, so that its gradient stands in that place: the
    backward pass reads rows as the forward pass does, where indexing would add them up.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        padding: Tensor,
        sources: Tensor,
        padded: Tensor,
        places: Tensor,
        left_out: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(padded, places, left_out)
        return _moved(rows, padding, sources, padded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        padded, places, left_out = ctx.saved_tensors
        of_rows = of_padding = None
        if ctx.needs_input_grad[0]:
            of_rows = _moved(gradient, gradient.new_zeros(gradient.shape[1]), places, left_out)
        if ctx.needs_input_grad[1]:
            of_padding = gradient.index_select(0, padded).sum(0)
        return of_rows, of_padding, None, None, None, None


def _moved(rows: Tensor, padding: Tensor, sources: Tensor, padded: Tensor) -> Tensor:
    if not len(rows):
        return padding.expand(len(sources), -1).clone()
    out = rows.index_select(0, sources)
    if len(padded):
        out[padded] = padding
    return out
