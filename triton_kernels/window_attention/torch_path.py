"""Window attention in PyTorch, a few windows at a time so that scores stay in the CPU cache.

Forward and backward are separate functions that bypass autograd. Arguments are checked in `op.py`.

Notation: B batch size, (H, W) map size, h heads, d head dim, w window size, N = w * w tokens per
window, M = B H W tokens in the batch, n windows per piece.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..runtime.attention_backward import attention_backward
from ..runtime.scratch import Scratch
from .shift_mask import shift_mask
from .window_partition import SEAMS, Piece, WindowRows, window_rows
from .window_spec import WindowSpec

#: Maximum size of a piece's attention weights in bytes, so that they stay in the cache.
PIECE_BYTES = 4_000_000
#: Maximum size of a strip's outputs in bytes.
STRIP_BYTES = 8_000_000


def forward(qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor, spec: WindowSpec) -> Tensor:
    """Compute window attention; see `op.window_attention`."""
    rows, flat, padding = _inputs(qkv, qkv_bias, spec)
    heads, tokens, width = qkv.shape[4], spec.window_size**2, qkv.shape[5]
    scores = _Scores(bias_table, rows, spec, qkv.dtype)
    out = flat.new_empty(len(flat), heads * width)
    for run in rows.outside:
        out[run] = 0
    for strip in rows.strips:
        scratch = Scratch(flat.device)
        strip_rows = scratch.empty(strip.windows * tokens + 1, heads * width, dtype=flat.dtype)
        for piece in strip.pieces:
            with scratch.borrow():
                query, key, value = _pack(
                    piece.gather(flat, padding, scratch), 3, heads, tokens, scratch
                )
                query *= width**-0.5
                weights = scores.weights(query, key, piece, scratch)
                attended = scratch.empty(*value.shape, dtype=value.dtype)
                torch.bmm(scratch.cast(weights, value.dtype), value, out=attended)
                _unpack(attended[None], strip_rows[piece.places], heads)
        strip.scatter(strip_rows, out)
    return out.view(*qkv.shape[:3], heads, width)


def backward(
    grad: Tensor, qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor, spec: WindowSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of qkv, bias_table and qkv_bias."""
    rows, flat, padding = _inputs(qkv, qkv_bias, spec)
    heads, tokens, width = qkv.shape[4], spec.window_size**2, qkv.shape[5]
    scores = _Scores(bias_table, rows, spec, qkv.dtype)
    grad_rows = grad.reshape(len(flat), heads * width)
    zeros = flat.new_zeros(heads * width)
    grad_qkv = torch.empty_like(flat, memory_format=torch.contiguous_format)
    for run in rows.outside:
        grad_qkv[run] = 0
    wide = scores.bias.dtype
    grad_padding = torch.zeros_like(padding, dtype=wide)
    grad_scores = flat.new_zeros(heads, tokens, tokens, dtype=wide)
    for strip in rows.strips:
        scratch = Scratch(flat.device)
        strip_rows = scratch.empty(strip.windows * tokens + 1, flat.shape[1], dtype=flat.dtype)
        for piece in strip.pieces:
            with scratch.borrow():
                query, key, value = _pack(
                    piece.gather(flat, padding, scratch), 3, heads, tokens, scratch
                )
                query *= width**-0.5
                (grad_out,) = _pack(
                    piece.gather(grad_rows, zeros, scratch), 1, heads, tokens, scratch
                )
                weights = scores.weights(query, key, piece, scratch)
                grad_packed = scratch.empty(3, *query.shape, dtype=query.dtype)
                piece_scores = attention_backward(
                    grad_out, query, key, value, weights, scratch=scratch, out=grad_packed.unbind(0)
                )
                grad_scores += piece_scores.view(-1, heads, tokens, tokens).sum(0)
                grad_packed[0] *= width**-0.5
                grad_piece = strip_rows[piece.places]
                _unpack(grad_packed, grad_piece, heads)
                if len(piece.padded):
                    grad_padding += grad_piece.index_select(0, piece.padded).sum(0, dtype=wide)
        strip.scatter(strip_rows, grad_qkv)
    # [h, N, N] -> [N N, h]: token pairs with the same offset share a row of the table.
    grad_table = torch.zeros_like(bias_table, dtype=wide).index_add_(
        0, _bias_index(spec.window_size, qkv.device), grad_scores.flatten(1).t()
    )
    grad_bias = grad_padding.view(qkv_bias.shape).to(qkv_bias.dtype)
    return grad_qkv.view(qkv.shape), grad_table.to(bias_table.dtype), grad_bias


class _Scores:
    """Biases added to scores: relative position bias [h, N, N] and shift masks [N, N]."""

    def __init__(
        self, bias_table: Tensor, rows: WindowRows, spec: WindowSpec, dtype: torch.dtype
    ) -> None:
        tokens = spec.window_size**2
        bias = bias_table.index_select(0, _bias_index(spec.window_size, bias_table.device))
        bias = bias.to(torch.promote_types(dtype, torch.float32))
        #: [h, N, N], float32 or wider.
        self.bias = bias.t().reshape(-1, tokens, tokens)
        #: Indexed like `SEAMS`; None if no mask is needed.
        self.masks = [
            shift_mask(seams, spec.window_size, spec.shift, bias.device)
            if any(seams) and number in rows.seams
            else None
            for number, seams in enumerate(SEAMS)
        ]

    def weights(self, query: Tensor, key: Tensor, piece: Piece, scratch: Scratch) -> Tensor:
        """Compute the attention weights [n h, N, N] of scaled queries and keys [n h, N, d]."""
        scores = scratch.empty(len(query), *self.bias.shape[1:], dtype=query.dtype)
        torch.bmm(query, key.transpose(1, 2), out=scores)
        scores = scratch.cast(scores, self.bias.dtype)
        by_window = scores.view(-1, *self.bias.shape)
        by_window += self.bias
        for seams, windows in piece.seams:
            mask = self.masks[seams]
            if mask is not None:
                by_window[windows] += mask
        return torch.softmax(scores, -1, out=scores)


def _inputs(qkv: Tensor, qkv_bias: Tensor, spec: WindowSpec) -> tuple[WindowRows, Tensor, Tensor]:
    """Return the windows, the tokens [M, 3 h d], and the QKV of padded positions [3 h d]."""
    batch, height, width = qkv.shape[:3]
    sizes = [(height, width)] * batch
    if spec.valid_sizes is not None:
        sizes = [(rows, columns) for rows, columns in spec.valid_sizes.tolist()]
    tokens, heads = spec.window_size**2, qkv.shape[4]
    rows = window_rows(
        tuple(sizes),
        (height, width),
        spec.window_size,
        spec.shift,
        qkv.device,
        strip_windows=max(1, STRIP_BYTES // (tokens * heads * qkv.shape[5] * qkv.element_size())),
        piece_windows=max(1, PIECE_BYTES // (4 * heads * tokens**2)),
    )
    return rows, qkv.flatten(3).flatten(0, 2), qkv_bias.to(qkv.dtype).flatten()


def _pack(
    rows: Tensor, kinds: int, heads: int, tokens: int, scratch: Scratch
) -> tuple[Tensor, ...]:
    """Split rows [n N, k h d] into k batches of matrices [n h, N, d]."""
    by_head = rows.view(-1, tokens, kinds, heads, rows.shape[1] // (kinds * heads))
    by_head = by_head.permute(2, 0, 3, 1, 4)
    packed = scratch.empty(*by_head.shape, dtype=rows.dtype).copy_(by_head)
    return packed.flatten(1, 2).unbind(0)


def _unpack(packed: Tensor, rows: Tensor, heads: int) -> None:
    """Inverse of `_pack`: write [k, n h, N, d] into rows [n N, k h d]."""
    kinds, _, tokens, width = packed.shape
    by_head = packed.view(kinds, -1, heads, tokens, width)
    rows.view(-1, tokens, kinds, heads, width).copy_(by_head.permute(1, 3, 0, 2, 4))


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _bias_index(window_size: int, device: torch.device) -> Tensor:
    """Compute the bias table row of every token pair in a window, [N * N] int64."""
    ticks = torch.arange(window_size, device=device)
    # [w, w] offset query - key along one axis, from 0
    offset = ticks[:, None] - ticks + window_size - 1
    index = offset[:, None, :, None] * (2 * window_size - 1) + offset[None, :, None, :]
    return index.reshape(-1)
