"""Every operation in plain PyTorch: the specification of its interface, and the path on a CPU.

Arguments are those of `operations.py`, already checked.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .window_rows import SEAMS, WindowRows, from_windows, to_windows, window_rows, windows_piece

#: Queries, keys and values that are read at once without gradients, in bytes: part of a cache.
PIECE_BYTES = 8_000_000


def window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    *,
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None = None,
) -> Tensor:
    """See `operations.window_attention`."""
    batch, height, width, _, heads, head_width = qkv.shape
    sizes = [(height, width)] * batch
    if valid_sizes is not None:
        sizes = [(rows, columns) for rows, columns in valid_sizes.tolist()]
    rows = window_rows(tuple(sizes), (height, width), window_size, shift, qkv.device)
    tokens = window_size**2
    masks = _masks(rows, window_size, shift)
    flat, padding = qkv.flatten(3).flatten(0, 2), qkv_bias.to(qkv.dtype).flatten()
    # (N N, h) -> (h, N, N)
    bias = bias_table.index_select(0, _bias_index(window_size, bias_table.device))
    bias = bias.t().reshape(heads, tokens, tokens)
    if torch.is_grad_enabled() and (qkv.requires_grad or bias.requires_grad):
        # The fused CPU kernel has no gradient for its mask.
        packed = to_windows(flat, padding, rows).view(-1, tokens, 3, heads, head_width)
        windows = _scored_windows(packed, bias, masks)
    else:
        windows = _fused_windows(flat, padding, bias, masks, rows)
    return from_windows(windows, rows).view(batch, height, width, heads, head_width)


def image_to_text_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None = None,
    *,
    key_mask: Tensor | None = None,
) -> Tensor:
    """See `operations.image_to_text_attention`."""
    if key_lengths is not None:
        positions = torch.arange(k.shape[1], device=k.device)
        key_mask = positions < key_lengths[:, None]
    return _attention(q, k, v, key_mask)


def text_to_image_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    valid_sizes: Tensor | None = None,
    map_size: tuple[int, int] | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """See `operations.text_to_image_attention`."""
    key_mask = None
    if valid_sizes is not None and map_size is not None:
        key_mask = _inside(valid_sizes, *map_size).flatten(1)
    return _attention(q, k, v, key_mask, dropout_p)


def gated_residual(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    """See `operations.gated_residual`; the gate scales the small weight, not the large product."""
    return x + F.linear(y, gate * weight, gate * bias)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, dropout_p: float = 0.0
) -> Tensor:
    """Attend from (B, n, h, d) to (B, m, h, d); key_mask (B, m) bool, True = read."""
    mask = None
    if key_mask is not None:
        mask = key_mask[:, None, None, :]
        # Keys that are not read may hold anything, NaN included: 0 * NaN would leak.
        hidden = ~key_mask[..., None, None]
        k, v = k.masked_fill(hidden, 0), v.masked_fill(hidden, 0)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, dropout_p=dropout_p
    )
    return out.transpose(1, 2)


def _masks(rows: WindowRows, window_size: int, shift: int) -> list[tuple[slice, Tensor | None]]:
    """Runs of windows that share a mask, (N, N) scores to add; None where nothing is masked."""
    runs: list[tuple[slice, Tensor | None]] = []
    start = 0
    for seams, count in zip(SEAMS, rows.counts, strict=True):
        if count:
            mask = _seam_mask(seams, window_size, shift, rows.tokens.device)
            runs.append((slice(start, start + count), mask if any(seams) else None))
        start += count
    return runs


def _fused_windows(
    qkv: Tensor,
    padding: Tensor,
    bias: Tensor,
    masks: list[tuple[slice, Tensor | None]],
    rows: WindowRows,
) -> Tensor:
    """Attend inside windows, some at a time, so that what is read stays in the cache.

    Args:
        qkv: (M, 3 h d) of all tokens.
        padding: (3 h d,) of a padded place.
        bias: (h, N, N) scores to add in every window.
        masks: of runs of windows.
        rows: which tokens the windows hold.

    Returns:
        (nW N, h d).
    """
    heads, tokens = bias.shape[:2]
    width = qkv.shape[1] // 3
    out = qkv.new_empty(len(rows.tokens), width)
    at_once = max(1, PIECE_BYTES // (tokens * qkv.shape[1] * qkv.element_size()))
    for run, mask in masks:
        scores = (bias if mask is None else bias + mask).unsqueeze(0).to(qkv.dtype)
        for start in range(run.start, run.stop, at_once):
            piece = slice(start * tokens, min(start + at_once, run.stop) * tokens)
            # (n N, 3 h d) -> 3 x (n, h, N, d), of which nothing is copied again
            query, key, value = (
                windows_piece(qkv, padding, rows, piece)
                .view(-1, tokens, 3, heads, width // heads)
                .permute(2, 0, 3, 1, 4)
                .unbind(0)
            )
            read = F.scaled_dot_product_attention(query, key, value, attn_mask=scores)
            out[piece] = read.transpose(1, 2).reshape(-1, width)
    return out


def _scored_windows(
    packed: Tensor, bias: Tensor, masks: list[tuple[slice, Tensor | None]]
) -> Tensor:
    """The same with every score written out: (nW, N, 3, h, d) and bias (h, N, N) -> (nW N, h d)."""
    query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    if scores.dtype.itemsize < 4:
        scores = scores.float()
    scores = scores.add_(bias)
    with torch.no_grad():
        # Constants: no gradient has to know of them.
        for run, mask in masks:
            if mask is not None:
                scores[run].add_(mask)
    read = scores.softmax(-1).to(value.dtype) @ value
    return read.transpose(1, 2).flatten(0, 1).flatten(1)


def _inside(valid_sizes: Tensor, height: int, width: int) -> Tensor:
    """Mark the positions of each sample's own map: (B, 2) -> (B, H, W) bool."""
    rows = torch.arange(height, device=valid_sizes.device)[:, None] < valid_sizes[:, :1, None]
    columns = torch.arange(width, device=valid_sizes.device) < valid_sizes[:, 1:, None]
    return rows & columns


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _bias_index(window_size: int, device: torch.device) -> Tensor:
    """Rows of the bias table for every pair of tokens of a window: (N * N,) int64."""
    ticks = torch.arange(window_size, device=device)
    # (w, w): offset query - key along one axis, made non-negative
    offset = ticks[:, None] - ticks + window_size - 1
    index = offset[:, None, :, None] * (2 * window_size - 1) + offset[None, :, None, :]
    return index.reshape(-1)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _seam_mask(
    seams: tuple[bool, bool], window_size: int, shift: int, device: torch.device
) -> Tensor:
    """Scores to add in a rolled map: (N, N), -100 where two tokens were no neighbours."""
    behind = torch.arange(window_size, device=device) >= window_size - shift
    rows, columns = (behind & seam for seam in seams)
    regions = (2 * rows[:, None] + columns).flatten()
    return (regions[:, None] != regions).float() * -100.0
