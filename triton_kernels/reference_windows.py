"""Window attention in plain PyTorch: some windows at a time, so that what is read stays in a cache.

Forward and backward passes are functions of their own, without autograd: nothing of the size of the
scores is kept from one to the other. Arguments are those of `operations.py`, already checked.
Letters beside those of `operations.py`: M tokens of the batch, N tokens of a window, n windows that
are read at once.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import attention_backward, products
from .window_rows import SEAMS, WindowRows, window_rows

#: Queries, keys and values that are read at once, in bytes: part of a cache.
PIECE_BYTES = 4_000_000


def window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None,
    *,
    exact_order: bool = False,
) -> Tensor:
    """See `operations.window_attention`.

    Args:
        qkv: (B, H, W, 3, h, d).
        bias_table: ((2 w - 1) ** 2, h).
        qkv_bias: (3, h, d).
        window_size: w.
        shift: in tokens.
        valid_sizes: (B, 2), or None.
        exact_order: whether to keep to the published order of operations, in which the backward
            pass computes scores anew; without it torch's fused kernel runs, which rounds otherwise.
    """
    rows, flat, padding = _inputs(qkv, qkv_bias, window_size, shift, valid_sizes)
    heads, tokens = qkv.shape[4], window_size**2
    scores = _seam_scores(bias_table, rows, window_size, shift, qkv.dtype)
    # One row more than there are tokens takes what is computed for padded places.
    out = flat.new_empty(len(flat) + 1, flat.shape[1] // 3)
    out[rows.outside] = 0
    for seams, piece in rows.pieces(_windows_at_once(flat, tokens), tokens):
        packed = piece.read(flat, padding).view(-1, tokens, 3, heads, qkv.shape[5])
        read = (_read_exactly if exact_order else _read_fused)(packed, scores[seams])
        out.index_copy_(0, piece.targets, read.reshape(-1, out.shape[1]))
    return out[: len(flat)].view(*qkv.shape[:3], *qkv.shape[4:])


def window_attention_backward(
    grad: Tensor,
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the gradients of qkv, bias_table and qkv_bias; scores are computed anew."""
    rows, flat, padding = _inputs(qkv, qkv_bias, window_size, shift, valid_sizes)
    heads, tokens, width = qkv.shape[4], window_size**2, qkv.shape[5]
    scores = _seam_scores(bias_table, rows, window_size, shift, qkv.dtype)
    grad_rows, nothing = grad.reshape(len(flat), -1), flat.new_zeros(heads * width)
    of_qkv = flat.new_empty(len(flat) + 1, flat.shape[1])
    of_qkv[rows.outside] = 0
    wide = scores[0].dtype
    of_padding = torch.zeros_like(padding, dtype=wide)
    of_scores = flat.new_zeros(heads, tokens, tokens, dtype=wide)
    for seams, piece in rows.pieces(_windows_at_once(flat, tokens), tokens):
        packed = piece.read(flat, padding).view(-1, tokens, 3, heads, width)
        packed[:, :, 0] *= width**-0.5
        of_read = piece.read(grad_rows, nothing).view(-1, tokens, 1, heads, width)
        of_parts = _read_backward(_pack(of_read), _pack(packed), scores[seams], of_scores)
        of_packed = _unpack(of_parts, heads)
        of_packed[:, :, 0] *= width**-0.5
        of_packed = of_packed.reshape(-1, flat.shape[1])
        of_qkv.index_copy_(0, piece.targets, of_packed)
        if len(piece.padded):
            of_padding += of_packed.index_select(0, piece.padded).sum(0, dtype=wide)
    # (h, N, N) -> (N N, h): pairs of tokens of the same offset share a row of the table.
    of_table = torch.zeros_like(bias_table, dtype=wide).index_add_(
        0, _bias_index(window_size, qkv.device), of_scores.flatten(1).t()
    )
    return (
        of_qkv[: len(flat)].view(qkv.shape),
        of_table.to(bias_table.dtype),
        of_padding.view(qkv_bias.shape).to(qkv_bias.dtype),
    )


def _read_fused(packed: Tensor, scores: Tensor) -> Tensor:
    """(n, N, 3, h, d) and scores to add (1, h, N, N) -> (n, N, h, d)."""
    query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
    read = F.scaled_dot_product_attention(query, key, value, attn_mask=scores)
    return read.transpose(1, 2)


def _read_exactly(packed: Tensor, scores: Tensor) -> Tensor:
    """The same with every score written out; scales the queries of `packed` where they are."""
    heads, width = packed.shape[3:]
    packed[:, :, 0] *= width**-0.5
    parts = _pack(packed)
    read = torch.empty_like(parts[:, :1])
    for number, (query, key, value) in enumerate(parts):
        weights = products(query, key, _of_part(scores[0], number, len(parts))).softmax(-1)
        torch.bmm(weights.to(value.dtype), value, out=read[number, 0])
    return _unpack(read, heads)


def _read_backward(of_read: Tensor, parts: Tensor, scores: Tensor, of_scores: Tensor) -> Tensor:
    """Give the gradients of packed, scaled queries, keys and values; add to those of the scores.

    Args:
        of_read: packed gradient of what is read.
        parts: packed.
        scores: to add, (1, h, N, N).
        of_scores: (h, N, N) sum over all windows.
    """
    of_parts = torch.empty_like(parts)
    for number, (query, key, value) in enumerate(parts):
        added = attention_backward(
            of_read[number, 0],
            query,
            key,
            value,
            _of_part(scores[0], number, len(parts)),
            out=of_parts[number].unbind(0),
        )
        total = _of_part(of_scores, number, len(parts))
        total += added if total.dim() == 3 else added.sum(0)
    return of_parts


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
    """Bring what one batched product reads together, copied: a head of all windows, or a window.

    Whichever are fewer, heads or windows, come first; the products of the others are one batch.

    Args:
        tokens: (n, N, k, h, d).

    Returns:
        (h, k, n, N, d), or (n, k, h, N, d) where there are fewer windows than heads.
    """
    windows, heads = len(tokens), tokens.shape[3]
    order = (3, 2, 0, 1, 4) if heads <= windows else (0, 2, 3, 1, 4)
    return tokens.permute(order).contiguous()


def _unpack(parts: Tensor, heads: int) -> Tensor:
    """Undo `_pack`: a view of (n, N, k, h, d)."""
    return parts.permute((2, 3, 1, 0, 4) if len(parts) == heads else (0, 3, 1, 2, 4))


def _of_part(scores: Tensor, number: int, parts: int) -> Tensor:
    """Those of (h, N, N) scores that a packed part reads or writes: (N, N) or all."""
    return scores[number] if parts == len(scores) else scores


def _windows_at_once(flat: Tensor, tokens: int) -> int:
    return max(1, PIECE_BYTES // (tokens * flat.shape[1] * flat.element_size()))


def _seam_scores(
    bias_table: Tensor, rows: WindowRows, window_size: int, shift: int, dtype: torch.dtype
) -> list[Tensor]:
    """Scores to add in windows with each of `SEAMS`: 4 x (1, h, N, N), float32 or wider."""
    tokens = window_size**2
    bias = bias_table.index_select(0, _bias_index(window_size, bias_table.device))
    bias = bias.to(torch.promote_types(dtype, torch.float32))
    bias = bias.t().reshape(1, -1, tokens, tokens)
    return [
        bias + _seam_mask(seams, window_size, shift, bias.device) if count and any(seams) else bias
        for seams, count in zip(SEAMS, rows.counts, strict=True)
    ]


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
