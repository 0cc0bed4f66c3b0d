"""Window attention in plain PyTorch: some windows at a time, so that what is read stays in a cache.

Forward and backward passes are functions of their own, without autograd. Arguments are those of
`operations.py`, already checked. Letters beside those of its: M tokens of the batch, N tokens of a
window, nW windows of the batch, n windows that are read at once.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import attention_backward
from .window_rows import SEAMS, Piece, WindowRows, window_rows

#: Queries, keys and values, or weights, of windows that are read at once, in bytes: in a cache.
PIECE_BYTES = 4_000_000
#: Most bytes of weights that are kept for the backward pass; more are computed anew, which is then
#: the faster way, since they leave the caches.
KEPT_BYTES = 32_000_000


def keeps_weights(qkv: Tensor, window_size: int, valid_sizes: Tensor | None) -> tuple[int, ...]:
    """Shape of the weights that a forward pass with gradients keeps: (nW, h, N, N), or (0,).

    A rule by shape alone. Samples of their own sizes keep none: their windows are counted later.
    """
    batch, height, width = qkv.shape[:3]
    if qkv.device.type != "cpu" or valid_sizes is not None:
        return (0,)
    windows = batch * -(-height // window_size) * -(-width // window_size)
    shape = (windows, qkv.shape[4], window_size**2, window_size**2)
    return shape if 4 * math.prod(shape) <= KEPT_BYTES else (0,)


def window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None,
    *,
    trains: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `operations.window_attention`.

    Args:
        qkv: (B, H, W, 3, h, d).
        bias_table: ((2 w - 1) ** 2, h).
        qkv_bias: (3, h, d).
        window_size: w.
        shift: in tokens.
        valid_sizes: (B, 2), or None.
        trains: whether gradients follow. Then the published order of operations is kept, which the
            backward pass has too; else torch's fused kernel runs, which rounds otherwise.

    Returns:
        What is read, (B, H, W, h, d), and the weights that `keeps_weights` says, (0,) without
        gradients.
    """
    rows, flat, padding = _inputs(qkv, qkv_bias, window_size, shift, valid_sizes)
    heads, tokens = qkv.shape[4], window_size**2
    scores = _Scores(bias_table, rows, window_size, shift, qkv.dtype)
    # One row more than there are tokens takes what is computed for padded places.
    out = flat.new_empty(len(flat) + 1, flat.shape[1] // 3)
    out[rows.outside] = 0
    kept = keeps_weights(qkv, window_size, valid_sizes) if trains else (0,)
    weights = flat.new_empty(kept, dtype=scores.bias.dtype)
    for piece in rows.pieces(_at_once(flat, heads, tokens, trains=trains), tokens):
        packed = piece.read(flat, padding).view(-1, tokens, 3, heads, qkv.shape[5])
        if trains:
            of_piece = weights[piece.windows] if weights.numel() else None
            read = _read_exactly(packed, scores, piece, of_piece)
        else:
            read = _read_fused(packed, scores, piece)
        out.index_copy_(0, piece.targets, read.reshape(-1, out.shape[1]))
    return out[: len(flat)].view(*qkv.shape[:3], *qkv.shape[4:]), weights


def window_attention_backward(
    grad: Tensor,
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    weights: Tensor,
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the gradients of qkv, bias_table and qkv_bias.

    Args:
        grad: of what was read.
        qkv: as in `window_attention`, like all that is not named here.
        bias_table: see there.
        qkv_bias: see there.
        weights: that were kept; those of (0,) are computed anew.
        window_size: see there.
        shift: see there.
        valid_sizes: see there.
    """
    rows, flat, padding = _inputs(qkv, qkv_bias, window_size, shift, valid_sizes)
    heads, tokens, width = qkv.shape[4], window_size**2, qkv.shape[5]
    scores = _Scores(bias_table, rows, window_size, shift, qkv.dtype)
    grad_rows = grad.reshape(len(flat), heads * width)
    nothing = flat.new_zeros(heads * width)
    of_qkv = flat.new_empty(len(flat) + 1, flat.shape[1])
    of_qkv[rows.outside] = 0
    wide = scores.bias.dtype
    of_padding = torch.zeros_like(padding, dtype=wide)
    of_scores = flat.new_zeros(heads, tokens, tokens, dtype=wide)
    for piece in rows.pieces(_at_once(flat, heads, tokens, trains=True), tokens):
        query, key, value = _pack(
            piece.read(flat, padding).view(-1, tokens, 3, heads, width)
        ).unbind(0)
        query *= width**-0.5
        (of_read,) = _pack(piece.read(grad_rows, nothing).view(-1, tokens, 1, heads, width))
        if weights.numel():
            of_piece = weights[piece.windows].flatten(0, 1)
        else:
            of_piece = scores.weights(query, key, piece)
        of_packed = query.new_empty(3, *query.shape)
        added = attention_backward(of_read, query, key, value, of_piece, out=of_packed.unbind(0))
        of_scores += added.view(-1, heads, tokens, tokens).sum(0)
        of_packed[0] *= width**-0.5
        of_rows = _unpack(of_packed, heads).reshape(-1, flat.shape[1])
        of_qkv.index_copy_(0, piece.targets, of_rows)
        if len(piece.padded):
            of_padding += of_rows.index_select(0, piece.padded).sum(0, dtype=wide)
    # (h, N, N) -> (N N, h): pairs of tokens of the same offset share a row of the table.
    of_table = torch.zeros_like(bias_table, dtype=wide).index_add_(
        0, _bias_index(window_size, qkv.device), of_scores.flatten(1).t()
    )
    return (
        of_qkv[: len(flat)].view(qkv.shape),
        of_table.to(bias_table.dtype),
        of_padding.view(qkv_bias.shape).to(qkv_bias.dtype),
    )


def _read_fused(packed: Tensor, scores: _Scores, piece: Piece) -> Tensor:
    """(n, N, 3, h, d) -> (n, N, h, d)."""
    query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
    parts = [
        F.scaled_dot_product_attention(
            query[windows], key[windows], value[windows], attn_mask=scores.of(seams)
        )
        for seams, windows in piece.seams
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).transpose(1, 2)


def _read_exactly(packed: Tensor, scores: _Scores, piece: Piece, kept: Tensor | None) -> Tensor:
    """The same with every score written out; `kept` (n, h, N, N) takes the weights."""
    heads, width = packed.shape[3:]
    query, key, value = _pack(packed).unbind(0)
    query *= width**-0.5
    weights = scores.weights(query, key, piece, kept)
    return _unpack(torch.bmm(weights.to(value.dtype), value)[None], heads).squeeze(2)


class _Scores:
    """What is added to the scores of windows: (h, N, N) bias, and (N, N) by the seams."""

    def __init__(
        self,
        bias_table: Tensor,
        rows: WindowRows,
        window_size: int,
        shift: int,
        dtype: torch.dtype,
    ) -> None:
        tokens = window_size**2
        bias = bias_table.index_select(0, _bias_index(window_size, bias_table.device))
        bias = bias.to(torch.promote_types(dtype, torch.float32))
        #: (h, N, N), float32 or wider.
        self.bias = bias.t().reshape(-1, tokens, tokens)
        #: By the number of the seams; None where nothing is masked.
        self.masks = [
            _seam_mask(seams, window_size, shift, bias.device) if count and any(seams) else None
            for seams, count in zip(SEAMS, rows.counts, strict=True)
        ]

    def of(self, seams: int) -> Tensor:
        """Bias and mask together, (1, h, N, N)."""
        mask = self.masks[seams]
        return (self.bias if mask is None else self.bias + mask)[None]

    def weights(
        self, query: Tensor, key: Tensor, piece: Piece, out: Tensor | None = None
    ) -> Tensor:
        """Weights of scaled queries (n h, N, d) and keys: (n h, N, N)."""
        products = torch.bmm(query, key.transpose(1, 2)).to(self.bias.dtype)
        by_window = products.view(-1, *self.bias.shape)
        by_window += self.bias
        for seams, windows in piece.seams:
            mask = self.masks[seams]
            if mask is not None:
                by_window[windows] += mask
        if out is None:
            return products.softmax(-1)
        return torch.softmax(products, -1, out=out.flatten(0, 1))


def _inputs(
    qkv: Tensor, qkv_bias: Tensor, window_size: int, shift: int, valid_sizes: Tensor | None
) -> tuple[WindowRows, Tensor, Tensor]:
    """The windows; tokens (M, 3 h d); and a padded place (3 h d,)."""
    batch, height, width = qkv.shape[:3]
    sizes = [(height, width)] * batch
    if valid_sizes is not None:
        sizes = [(rows, columns) for rows, columns in valid_sizes.tolist()]
    rows = window_rows(tuple(sizes), (height, width), window_size, shift, qkv.device)
    return rows, qkv.flatten(3).flatten(0, 2), qkv_bias.to(qkv.dtype).flatten()


def _pack(tokens: Tensor) -> Tensor:
    """Bring what one batched product reads together: (n, N, k, h, d) -> (k, n h, N, d), copied."""
    return tokens.permute(2, 0, 3, 1, 4).flatten(1, 2).contiguous()


def _unpack(packed: Tensor, heads: int) -> Tensor:
    """Undo `_pack`: a view of (n, N, k, h, d)."""
    return packed.unflatten(1, (-1, heads)).permute(1, 3, 0, 2, 4)


def _at_once(flat: Tensor, heads: int, tokens: int, *, trains: bool) -> int:
    """How many windows stay in a cache: their queries, keys and values, or their weights."""
    row_bytes = flat.shape[1] * flat.element_size()
    window_bytes = max(tokens * row_bytes, 4 * heads * tokens**2 if trains else 0)
    return max(1, PIECE_BYTES // window_bytes)


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
