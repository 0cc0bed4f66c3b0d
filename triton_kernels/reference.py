"""Every operation in plain PyTorch: the specification of its interface, and the path on a CPU.

Arguments are those of `operations.py`, already checked.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


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
    rows, columns = -(-height // window_size), -(-width // window_size)
    outside = None
    if valid_sizes is not None:
        outside = ~_inside(valid_sizes, height, width)[..., None, None]
        qkv = torch.where(outside[..., None], qkv_bias.to(qkv.dtype), qkv)
    qkv = _pad(qkv, qkv_bias.to(qkv.dtype), rows * window_size, columns * window_size)
    if shift:
        qkv = torch.roll(qkv, (-shift, -shift), (1, 2))
    tokens, windows = window_size**2, rows * columns
    # (B, Hp, Wp, 3, h, d) -> 3 x (B nW, h, N, d)
    query, key, value = (
        qkv.reshape(batch, rows, window_size, columns, window_size, 3, heads, head_width)
        .permute(5, 0, 1, 3, 6, 2, 4, 7)
        .reshape(3, batch * windows, heads, tokens, head_width)
        .unbind(0)
    )
    # (N N, h) -> (1, h, N, N), and with the mask of every window (nW, h, N, N)
    bias = bias_table.index_select(0, _bias_index(window_size, bias_table.device))
    bias = bias.t().reshape(1, heads, tokens, tokens)
    if shift:
        mask = _shift_mask(rows, columns, window_size, shift, bias.device)
        bias = bias + mask[:, None].to(bias.dtype)
    out = _biased_attention(query, key, value, bias)
    # (B nW, h, N, d) -> (B, Hp, Wp, h, d)
    out = (
        out.reshape(batch, rows, columns, heads, window_size, window_size, head_width)
        .permute(0, 1, 4, 2, 5, 3, 6)
        .reshape(batch, rows * window_size, columns * window_size, heads, head_width)
    )
    if shift:
        out = torch.roll(out, (shift, shift), (1, 2))
    out = out[:, :height, :width]
    return out if outside is None else out.masked_fill(outside, 0)


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


def _biased_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attend inside windows: (B nW, h, N, d) and bias (1 or nW, h, N, N).

    Returns (B nW, h, N, d), or (B, nW h, N, d), which holds the same in the same order.
    """
    total, heads, tokens, width = query.shape
    if not (torch.is_grad_enabled() and (query.requires_grad or bias.requires_grad)):
        # The fused CPU kernel has no gradient for its mask. One mask serves all pictures when the
        # windows of a picture count as heads.
        shape = (total // len(bias), len(bias) * heads, tokens, width)
        query, key, value = query.reshape(shape), key.reshape(shape), value.reshape(shape)
        mask = bias.reshape(1, -1, tokens, tokens).to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = query * width**-0.5 @ key.transpose(-2, -1)
    if scores.dtype.itemsize < 4:
        scores = scores.float()
    # (B nW, h, N, N) -> (B, nW, h, N, N): the bias of a window is the same in every picture
    scores = scores.view(total // len(bias), *bias.shape).add_(bias).view(scores.shape)
    return scores.softmax(-1).to(value.dtype) @ value


def _inside(valid_sizes: Tensor, height: int, width: int) -> Tensor:
    """Mark the positions of each sample's own map: (B, 2) -> (B, H, W) bool."""
    rows = torch.arange(height, device=valid_sizes.device)[:, None] < valid_sizes[:, :1, None]
    columns = torch.arange(width, device=valid_sizes.device) < valid_sizes[:, 1:, None]
    return rows & columns


def _pad(qkv: Tensor, qkv_bias: Tensor, height: int, width: int) -> Tensor:
    """Fill the map up with `qkv_bias`: (B, H, W, 3, h, d) -> (B, height, width, 3, h, d)."""
    batch, old_height, old_width = qkv.shape[:3]
    if old_width < width:
        column = qkv_bias.expand(batch, old_height, width - old_width, *qkv_bias.shape)
        qkv = torch.cat((qkv, column), 2)
    if old_height < height:
        row = qkv_bias.expand(batch, height - old_height, width, *qkv_bias.shape)
        qkv = torch.cat((qkv, row), 1)
    return qkv


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _bias_index(window_size: int, device: torch.device) -> Tensor:
    """Rows of the bias table for every pair of tokens of a window: (N * N,) int64."""
    ticks = torch.arange(window_size, device=device)
    # (w, w): offset query - key along one axis, made non-negative
    offset = ticks[:, None] - ticks + window_size - 1
    index = offset[:, None, :, None] * (2 * window_size - 1) + offset[None, :, None, :]
    return index.reshape(-1)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _shift_mask(
    rows: int, columns: int, window_size: int, shift: int, device: torch.device
) -> Tensor:
    """Scores to add in a rolled map: (nW, N, N), -100 where two tokens were no neighbours."""

    def region(count: int) -> Tensor:
        """Number the three slices of one axis: (count, w)."""
        side = count * window_size
        ticks = torch.arange(side, device=device)
        numbers = (ticks >= side - window_size).int() + (ticks >= side - shift).int()
        return numbers.view(count, window_size)

    regions = 3 * region(rows)[:, None, :, None] + region(columns)[None, :, None, :]
    regions = regions.reshape(rows * columns, window_size**2)
    return (regions[:, :, None] != regions[:, None, :]).float() * -100.0
