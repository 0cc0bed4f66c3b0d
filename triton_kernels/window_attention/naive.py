"""Reference window attention for tests, as loops that pad, roll, partition and mask.

Differentiable, and written from the definition, independently of `torch_path.py`. Intended for
small float64 inputs.
"""

from __future__ import annotations

import torch
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
    """Compute `op.window_attention` token by token."""
    batch, height, width = qkv.shape[:3]
    samples = []
    for sample in range(batch):
        own_height, own_width = (
            (height, width) if valid_sizes is None else valid_sizes[sample].tolist()
        )
        out = torch.zeros_like(qkv[sample, :, :, 0])
        if own_height and own_width:
            # Pad the region to whole windows by itself, not to the map size of the batch.
            own = _one_map(
                qkv[sample, :own_height, :own_width], bias_table, qkv_bias, window_size, shift
            )
            places = torch.meshgrid(
                torch.arange(own_height), torch.arange(own_width), indexing="ij"
            )
            out = torch.index_put(out, tuple(places), own)
        samples.append(out)
    return torch.stack(samples)


def _one_map(
    qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor, window_size: int, shift: int
) -> Tensor:
    """Attend within the windows of one (H, W, 3, h, d) map; return (H, W, h, d)."""
    height, width = qkv.shape[:2]
    padded_height = (height + window_size - 1) // window_size * window_size
    padded_width = (width + window_size - 1) // window_size * window_size
    rows = []
    for y in range(padded_height):
        row = [qkv[y, x] if y < height and x < width else qkv_bias for x in range(padded_width)]
        rows.append(torch.stack(row))
    rolled = torch.roll(torch.stack(rows), (-shift, -shift), (0, 1))
    regions = _regions(padded_height, padded_width, window_size, shift)
    out = torch.zeros_like(rolled[:, :, 0])
    for top in range(0, padded_height, window_size):
        for left in range(0, padded_width, window_size):
            window = (slice(top, top + window_size), slice(left, left + window_size))
            attended = _one_window(rolled[window], regions[window], bias_table, window_size)
            places = torch.meshgrid(
                torch.arange(top, top + window_size),
                torch.arange(left, left + window_size),
                indexing="ij",
            )
            out = torch.index_put(out, tuple(places), attended)
    return torch.roll(out, (shift, shift), (0, 1))[:height, :width]


def _regions(height: int, width: int, window_size: int, shift: int) -> Tensor:
    """Label the nine regions of a rolled map. Without a shift, there is only one."""
    regions = torch.zeros(height, width, dtype=torch.long)
    if shift == 0:
        return regions
    slices = (slice(0, -window_size), slice(-window_size, -shift), slice(-shift, None))
    for i, rows in enumerate(slices):
        for j, columns in enumerate(slices):
            regions[rows, columns] = 3 * i + j
    return regions


def _one_window(qkv: Tensor, regions: Tensor, bias_table: Tensor, window_size: int) -> Tensor:
    """Attend among the tokens of one (w, w, 3, h, d) window; return (w, w, h, d)."""
    places = [(y, x) for y in range(window_size) for x in range(window_size)]
    heads, head_width = qkv.shape[3:]
    outputs = []
    for query_y, query_x in places:
        per_head = []
        for head in range(heads):
            scores = []
            for key_y, key_x in places:
                query, key = qkv[query_y, query_x, 0, head], qkv[key_y, key_x, 1, head]
                dy, dx = query_y - key_y, query_x - key_x
                row = (dy + window_size - 1) * (2 * window_size - 1) + dx + window_size - 1
                score = (query * key).sum() / head_width**0.5 + bias_table[row, head]
                if regions[query_y, query_x] != regions[key_y, key_x]:
                    score = score - 100.0
                scores.append(score)
            weights = torch.stack(scores).softmax(0)
            values = torch.stack([qkv[y, x, 2, head] for y, x in places])
            per_head.append((weights[:, None] * values).sum(0))
        outputs.append(torch.stack(per_head))
    return torch.stack(outputs).view(window_size, window_size, heads, head_width)
