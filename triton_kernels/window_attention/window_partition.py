"""Window partitioning by index arithmetic, without padded, rolled or partitioned tensors.

Notation: M = B H W tokens in the batch, N tokens per window, n windows in a strip or a piece,
R elements per row.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..runtime.scratch import Scratch

#: Combinations of seams of the rolled map that a window may contain: (between rows, between
#: columns).
SEAMS = ((False, False), (False, True), (True, False), (True, True))


class WindowRows(NamedTuple):
    """All windows of a batch."""

    strips: tuple[Strip, ...]
    #: Tokens that are not in any strip: rows below a sample's valid region.
    outside: tuple[slice, ...]
    #: Indices in `SEAMS` of the combinations that occur.
    seams: frozenset[int]


class Strip(NamedTuple):
    """Windows that cover whole rows of maps, so that outputs are written in contiguous runs."""

    #: n, the number of windows.
    windows: int
    #: Groups of windows that are processed one at a time.
    pieces: tuple[Piece, ...]
    #: Runs of tokens, and the position of each token in the windows, 0 ... n N - 1; n N for tokens
    #: outside their sample's valid region.
    runs: tuple[tuple[slice, Tensor], ...]

    def scatter(self, rows: Tensor, out: Tensor) -> None:
        """Copy rows [n N + 1, R] of window positions to their tokens in `out` [M, R].

        Tokens outside valid regions get zeros; the last row is overwritten with them.
        """
        rows[-1] = 0
        for run, places in self.runs:
            torch.index_select(rows, 0, places, out=out[run])


class Piece(NamedTuple):
    """Windows that are processed in one batch."""

    #: Range of positions in the strip.
    places: slice
    #: Indices in `SEAMS`, each with the range of windows that have these seams.
    seams: tuple[tuple[int, slice], ...]
    #: [n N] int64 token index at each position; 0 at padded positions.
    sources: Tensor
    #: Indices of padded positions.
    padded: Tensor

    def gather(self, tokens: Tensor, padding: Tensor, scratch: Scratch) -> Tensor:
        """Gather windows [n N, R] from tokens [M, R], with `padding` [R] at padded positions."""
        out = scratch.empty(len(self.sources), len(padding), dtype=tokens.dtype)
        if not len(tokens):
            return out.copy_(padding.expand_as(out))
        torch.index_select(tokens, 0, self.sources, out=out)
        if len(self.padded):
            out[self.padded] = padding
        return out


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def window_rows(
    sizes: tuple[tuple[int, int], ...],
    map_size: tuple[int, int],
    window_size: int,
    shift: int,
    device: torch.device,
    *,
    strip_windows: int,
    piece_windows: int,
) -> WindowRows:
    """Pad and roll each sample's valid region separately, and partition it into windows.

    Args:
        sizes: (height, width) of each sample's valid region, in the top left corner of the map.
        map_size: (H, W) of the tensor.
        window_size: window side length in tokens.
        shift: roll of the map in tokens.
        device: device of the index tensors.
        strip_windows: maximum number of windows per strip, but at least one row of windows.
        piece_windows: maximum number of windows per piece.
    """
    height, width = map_size
    strips: list[Strip] = []
    outside: list[slice] = []
    # The next strip: tokens [n, N], indices of seams [n], rows of maps.
    gathered: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def close() -> None:
        if gathered:
            windows, seams, rows = (np.concatenate(each) for each in zip(*gathered, strict=True))
            strips.append(_strip(windows, seams, rows, width, piece_windows, device))
            gathered.clear()

    for number, own in enumerate(sizes):
        first = number * height
        for windows, seams, rows in _rows_of_windows(own, width, window_size, shift):
            if sum(len(each) for each, *_ in gathered) + len(windows) > strip_windows:
                close()
            moved = np.where(windows < 0, windows, windows + first * width)
            gathered.append((moved, seams, rows + first))
        # A map without columns has no windows.
        written = own[0] if own[1] else 0
        if written < height:
            outside.append(slice((first + written) * width, (first + height) * width))
    close()
    used = {seam for strip in strips for piece in strip.pieces for seam, _ in piece.seams}
    return WindowRows(tuple(strips), tuple(outside), frozenset(used))


def _strip(
    windows: np.ndarray,
    seams: np.ndarray,
    rows: np.ndarray,
    width: int,
    piece_windows: int,
    device: torch.device,
) -> Strip:
    """Build a strip from windows [n, N] with seams [n] that cover the given map rows."""
    order = np.argsort(seams, kind="stable")
    seams, places = seams[order], windows[order].ravel()
    tokens = windows.shape[1]

    def moved(values: np.ndarray) -> Tensor:
        # Created with NumPy, which ignores torch's default device.
        return torch.from_numpy(values).to(device)

    pieces = []
    for first in range(0, len(windows), piece_windows):
        last = min(first + piece_windows, len(windows))
        here = places[first * tokens : last * tokens]
        kinds = [(kind, np.searchsorted(seams[first:last], (kind, kind + 1))) for kind in range(4)]
        pieces.append(
            Piece(
                slice(first * tokens, last * tokens),
                tuple((kind, slice(*ends.tolist())) for kind, ends in kinds if ends[0] < ends[1]),
                moved(here.clip(min=0)),
                moved(np.flatnonzero(here < 0)),
            )
        )
    rows = np.sort(rows)
    first_token = rows[0] * width
    place_of = np.full((rows[-1] + 1) * width - first_token, len(places))
    inside = np.flatnonzero(places >= 0)
    place_of[places[inside] - first_token] = inside
    runs = []
    for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        start, stop = int(run[0]) * width, (int(run[-1]) + 1) * width
        positions = place_of[start - first_token : stop - first_token].copy()
        runs.append((slice(start, stop), moved(positions)))
    return Strip(len(windows), tuple(pieces), tuple(runs))


def _rows_of_windows(
    own: tuple[int, int], width: int, window_size: int, shift: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Iterate over the window rows of one map.

    Yields:
        Token indices [n, N] (-1 at padded positions), indices [n] in `SEAMS`, and the map rows that
        the windows cover.
    """
    (row_ticks, row_seams), (column_ticks, column_seams) = (
        _ticks(side, window_size, shift) for side in own
    )
    if not len(column_ticks):
        return
    for ticks, seam in zip(row_ticks, row_seams, strict=True):
        # [n, w, w]
        y, x = ticks[None, :, None], column_ticks[:, None, :]
        tokens = np.where((y < 0) | (x < 0), -1, y * width + x)
        yield tokens.reshape(len(tokens), -1), 2 * int(seam) + column_seams, ticks[ticks >= 0]


def _ticks(side: int, window_size: int, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad and roll one axis; return indices per window [n, w] (-1 for padding) and seams [n]."""
    count = -(-side // window_size)
    ticks = (np.arange(count * window_size) + shift) % max(1, count * window_size)
    ticks = np.where(ticks < side, ticks, -1).reshape(count, window_size)
    return ticks, (np.arange(count) == count - 1) & (shift > 0)
