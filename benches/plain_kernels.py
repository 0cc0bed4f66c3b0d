"""The model's attention in two plain formulations, as peers of the kernels.

`eager_*` is the published code's: matrix products, bias, mask and softmax in sequence, and keys
repeated for every window. `sdpa_*` uses `scaled_dot_product_attention` on the same windows, with
bias and mask combined into one mask. Linear layers are excluded on all sides. The published code
moves tokens into windows before it projects them, C channels instead of 3 C; here the projections
of the windows are given, and the input of the block is moved.

Letters: B batch, H W map, C channels, nW windows, N tokens of a window, h heads, d head dim,
T image tokens, L text tokens.

Source: FIBER (Dou et al. 2022), structure of its published code; Swin Transformer (Liu et al.
2021).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Mask value of two tokens that are in one window only because of the cyclic shift.
SEPARATED = -100.0


def to_windows(tokens: Tensor, window: int, shift: int) -> Tensor:
    """Pad, roll and cut a map: (B, H, W, C) -> (B nW, N, C)."""
    batch, height, width, channels = tokens.shape
    padded = F.pad(tokens, (0, 0, 0, -width % window, 0, -height % window))
    if shift:
        padded = padded.roll((-shift, -shift), (1, 2))
    rows, columns = padded.shape[1] // window, padded.shape[2] // window
    cut = padded.view(batch, rows, window, columns, window, channels)
    return cut.transpose(2, 3).reshape(-1, window**2, channels)


def from_windows(windows: Tensor, map_size: tuple[int, int], window: int, shift: int) -> Tensor:
    """Undo `to_windows`: (B nW, N, C) -> (B, H, W, C)."""
    height, width = map_size
    rows, columns = -(-height // window), -(-width // window)
    cut = windows.view(-1, rows, columns, window, window, windows.shape[-1])
    whole = cut.transpose(2, 3).reshape(-1, rows * window, columns * window, windows.shape[-1])
    if shift:
        whole = whole.roll((shift, shift), (1, 2))
    return whole[:, :height, :width].contiguous()


def bias_index(window: int) -> Tensor:
    """Rows of the bias table for every pair of tokens: (N N,)."""
    places = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
    offsets = places[:, :, None] - places[:, None, :] + window - 1
    return (offsets[0] * (2 * window - 1) + offsets[1]).flatten()


def shift_mask(map_size: tuple[int, int], window: int, shift: int) -> Tensor | None:
    """Scores to add in a rolled map: (nW, N, N)."""
    if not shift:
        return None
    height, width = (-(-side // window) * window for side in map_size)
    regions = torch.zeros(1, height, width, 1)
    slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((r, c) for r in slices for c in slices):
        regions[:, rows, columns] = number
    numbers = to_windows(regions, window, 0).squeeze(-1)
    apart = numbers[:, None, :] != numbers[:, :, None]
    return apart.float() * SEPARATED


def eager_windows(qkv: Tensor, table: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
    """(B nW, N, 3 C) -> (B nW, N, C)."""
    windows, tokens, width = qkv.shape
    heads = table.shape[1]
    query, key, value = qkv.reshape(windows, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    scores = scores + table[index].view(tokens, tokens, heads).permute(2, 0, 1).contiguous()
    if mask is not None:
        grouped = scores.view(-1, len(mask), heads, tokens, tokens) + mask[:, None]
        scores = grouped.view(-1, heads, tokens, tokens)
    return (scores.softmax(-1) @ value).transpose(1, 2).reshape(windows, tokens, width // 3)


def sdpa_windows(qkv: Tensor, table: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
    """(B nW, N, 3 C) -> (B nW, N, C)."""
    windows, tokens, width = qkv.shape
    heads = table.shape[1]
    query, key, value = qkv.view(windows, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    scores = table[index].view(tokens, tokens, heads).permute(2, 0, 1)[None]
    if mask is not None:
        scores = scores + mask[:, None]
        scores = scores.repeat(windows // len(mask), 1, 1, 1)
    read = F.scaled_dot_product_attention(query, key, value, attn_mask=scores)
    return read.transpose(1, 2).reshape(windows, tokens, width // 3)


def _heads_first(tokens: Tensor, windows_of_each: int) -> Tensor:
    """(B, L, h, d) -> (B nW, h, L, d), once for every window."""
    return tokens.transpose(1, 2).repeat_interleave(windows_of_each, 0)


def eager_image_to_text(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """(B nW, N, h, d) reads (B, L, h, d); mask (B, L) of scores to add -> (B nW, N, h d)."""
    windows_of_each = len(query) // len(key)
    scores = (query.transpose(1, 2) * query.shape[-1] ** -0.5) @ _heads_first(
        key, windows_of_each
    ).transpose(-2, -1)
    scores = scores + mask.repeat_interleave(windows_of_each, 0)[:, None, None]
    read = scores.softmax(-1) @ _heads_first(value, windows_of_each)
    return read.transpose(1, 2).flatten(2)


def sdpa_image_to_text(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """As `eager_image_to_text`."""
    windows_of_each = len(query) // len(key)
    read = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        _heads_first(key, windows_of_each),
        _heads_first(value, windows_of_each),
        attn_mask=mask.repeat_interleave(windows_of_each, 0)[:, None, None],
    )
    return read.transpose(1, 2).flatten(2)


def eager_text_to_image(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, L, h, d) reads (B, T, h, d) -> (B, L, h d)."""
    query, key, value = (tokens.transpose(1, 2) for tokens in (query, key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def sdpa_text_to_image(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As `eager_text_to_image`."""
    query, key, value = (tokens.transpose(1, 2) for tokens in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
