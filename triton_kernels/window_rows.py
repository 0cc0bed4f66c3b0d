"""Which tokens stand in which window: index arithmetic instead of padding, rolling and cutting.

Letters: M tokens of the whole batch, B H W; N tokens of a window; nW windows of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Whether a window holds the seam of a rolled map: (between its rows, between its columns).
SEAMS = ((False, False), (False, True), (True, False), (True, True))


class WindowRows(NamedTuple):
    """The windows of a batch; those with the same seams follow one another, in `SEAMS`' order."""

    #: (nW N,) int64, the token (of M) at each place of each window; 0 at a padded place.
    sources: Tensor
    #: The same, with M at a padded place: the row behind the last takes what nobody reads.
    targets: Tensor
    #: Places (of nW N) that are padded.
    padded: Tensor
    #: Tokens (of M) outside their sample's own map.
    outside: Tensor
    #: Windows with each of `SEAMS`.
    counts: tuple[int, ...]
    #: `padded` once more, rising, where it can be searched without waiting for a device.
    padded_places: np.ndarray

    def pieces(self, at_once: int, tokens: int) -> Iterator[Piece]:
        """Cut the windows into runs of at most `at_once` windows of N tokens."""
        ends = list(accumulate(self.counts))
        for first in range(0, ends[-1], at_once):
            last = min(first + at_once, ends[-1])
            start, stop = first * tokens, last * tokens
            padded = slice(*np.searchsorted(self.padded_places, (start, stop)).tolist())
            seams = [
                (number, slice(max(end - count, first) - first, min(end, last) - first))
                for number, (end, count) in enumerate(zip(ends, self.counts, strict=True))
                if max(end - count, first) < min(end, last)
            ]
            yield Piece(
                slice(first, last),
                seams,
                self.sources[start:stop],
                self.targets[start:stop],
                self.padded[padded] - start,
            )


class Piece(NamedTuple):
    """Some windows that are read at once."""

    #: Which of all windows they are.
    windows: slice
    #: Their seams, as numbers in `SEAMS`, and which of the n windows have these.
    seams: list[tuple[int, slice]]
    #: (n N,), as in `WindowRows`.
    sources: Tensor
    #: (n N,), as in `WindowRows`.
    targets: Tensor
    #: Places (of n N) that are padded.
    padded: Tensor

    def read(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Bring tokens into their windows: (M, R) and (R,) for padded places -> (n N, R)."""
        if not len(tokens):
            return padding.expand(len(self.sources), -1).clone()
        out = tokens.index_select(0, self.sources)
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
    padded, count = tokens < 0, len(sizes) * height * width
    inside = np.zeros(count, bool)
    inside[tokens[~padded]] = True
    # By way of numpy, so that a default device, such as meta, has no part in it.
    tensors = [
        torch.from_numpy(each).to(device)
        for each in (
            tokens.clip(min=0),
            np.where(padded, count, tokens),
            np.flatnonzero(padded),
            np.flatnonzero(~inside),
        )
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
