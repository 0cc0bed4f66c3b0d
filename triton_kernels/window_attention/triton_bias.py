"""Relative position bias: expansion of the table to token pairs, and gradient of the table.

Pairs are stored in fragments, as described in `triton_tokens`.

Notation: h heads, w window size, N = w * w tokens per window, S >= N stored rows and columns (a
multiple of 16, so that the attention kernels read whole tiles).
"""

# Triton's type annotations do not cover everything that its compiler accepts.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.launch import Launch
from ..runtime.tiles import tile
from ..runtime.triton_math import accumulator
from .shift_mask import SHIFT_MASK

#: Converts scores to base 2, where an exponential is one instruction.
LOG2E = math.log2(math.e)
#: Base-2 score of a nonexistent key, which makes its weight 0.
NO_KEY = -1.0e30


def plan_expand(
    table: Tensor, window_size: int, shift: int, stored: int, dtype: torch.dtype, transposed: bool
) -> tuple[list[Launch], Tensor]:
    """Plan the expansion of the bias to all token pairs and all window classes.

    Args:
        table: [(2 w - 1) ** 2, h].
        window_size: w.
        shift: roll of the map in tokens. Without a shift, there is one class. Otherwise,
            a window's class is 2 * (it contains the row seam) + (it contains the column seam).
        stored: S.
        dtype: dtype of qkv.
        transposed: store keys instead of queries along rows.

    Returns:
        The launches, and the base-2 bias [classes, h, S * S], including the shift mask, in float32
        (float64 for float64 inputs). The bias is `NO_KEY` for keys with index N or above.
    """
    heads = table.shape[1]
    shape = (4 if shift else 1, heads, stored * stored)
    wide = torch.promote_types(dtype, torch.float32)
    out = torch.empty(shape, dtype=wide, device=table.device)
    sizes = tile("expand_bias", window=window_size, head_width=0, dtype=dtype, device=table.device)
    block = sizes["block_pairs"]
    launch = Launch(
        kernel=expand_bias,
        grid=(triton.cdiv(stored * stored, block), triton.cdiv(heads, sizes["heads"])),
        arguments={"table": table.contiguous(), "out": out, "heads": heads},
        constants={
            "WINDOW": window_size,
            "SHIFT": shift,
            "STORED": stored,
            "TRANSPOSED": transposed,
            "BLOCK": block,
            "HEADS": sizes["heads"],
            "LOG2E": LOG2E,
            "NO_KEY": NO_KEY,
            "SHIFT_MASK": SHIFT_MASK * LOG2E,
        },
        num_warps=sizes["num_warps"],
        num_stages=sizes["num_stages"],
    )
    return [launch], out


def plan_reduce(
    parts: Tensor, table: Tensor, window_size: int, stored: int, dtype: torch.dtype
) -> tuple[list[Launch], Tensor]:
    """Plan the reduction of the bias gradient over chunks, then pairs, in a fixed order.

    Args:
        parts: [chunks, h, S * S] gradient of the scores, with queries along rows. Only the first
            N rows and columns are read.
        table: [(2 w - 1) ** 2, h] bias table.
        window_size: w.
        stored: S.
        dtype: dtype of qkv.

    Returns:
        The launches, and the gradient in the table's shape and dtype.
    """
    chunks, heads, _ = parts.shape
    launches, summed = [], parts
    if chunks > 1:
        summed = torch.empty_like(parts[0]).view(-1)
        launches, summed = plan_sum(parts.view(chunks, -1), summed, dtype)
    out = torch.empty(table.shape, dtype=table.dtype, device=table.device)
    sizes = tile("gather_bias", window=window_size, head_width=0, dtype=dtype, device=table.device)
    launches.append(
        Launch(
            kernel=gather_bias,
            grid=(2 * window_size - 1, triton.cdiv(heads, sizes["heads"])),
            arguments={"pairs": summed, "out": out, "heads": heads},
            constants={
                "WINDOW": window_size,
                "STORED": stored,
                "BLOCK_OFFSETS": triton.next_power_of_2(2 * window_size - 1),
                "BLOCK_KEYS": triton.next_power_of_2(window_size),
                "HEADS": sizes["heads"],
                "ACCUMULATOR": accumulator(dtype),
            },
            num_warps=sizes["num_warps"],
            num_stages=sizes["num_stages"],
        )
    )
    return launches, out


def plan_sum(parts: Tensor, out: Tensor, dtype: torch.dtype) -> tuple[list[Launch], Tensor]:
    """Plan the sum of `parts` [n, M] over n into `out` [M] (both contiguous) in a fixed order.

    Returns:
        The launches, and `out`.
    """
    sizes = tile("sum_parts", window=None, head_width=0, dtype=dtype, device=parts.device)
    launches = []
    while True:
        count, width = parts.shape
        groups = triton.cdiv(count, sizes["group"])
        target = parts.new_empty(groups, width) if groups > 1 else out
        launches.append(
            Launch(
                kernel=sum_parts,
                grid=(triton.cdiv(width, sizes["block"]), groups),
                arguments={"parts": parts, "out": target, "count": count, "width": width},
                constants={
                    "GROUP": sizes["group"],
                    "BLOCK": sizes["block"],
                    "ACCUMULATOR": accumulator(dtype),
                },
                num_warps=sizes["num_warps"],
                num_stages=sizes["num_stages"],
            )
        )
        if groups == 1:
            return launches, out
        parts = target


@triton.jit
def expand_bias(
    table,  # [(2 w - 1) ** 2, h] input
    out,  # [classes, h, S * S] output
    heads,  # h
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    STORED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    LOG2E: tl.constexpr,
    NO_KEY: tl.constexpr,
    SHIFT_MASK: tl.constexpr,
):
    """Write the bias of BLOCK pairs for HEADS heads.

    Grid: (blocks of pairs, groups of heads).
    """
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    # Extract row and column from the bits of the offset; see `pair_offsets`.
    inside = pair % 128
    first = pair // (16 * STORED) * 16 + inside // 2 % 2 * 8 + inside // 16
    second = pair % (16 * STORED) // 128 * 8 + inside // 4 % 4 * 2 + inside % 2
    if TRANSPOSED:
        key, query = first, second
    else:
        query, key = first, second
    query_y, query_x = query // WINDOW, query % WINDOW
    key_y, key_x = key // WINDOW, key % WINDOW
    row = (query_y - key_y + WINDOW - 1) * (2 * WINDOW - 1) + query_x - key_x + WINDOW - 1
    stored = pair < STORED * STORED
    is_key = key < WINDOW * WINDOW
    real = is_key & (query < WINDOW * WINDOW)
    row_seam = (query_y >= WINDOW - SHIFT) != (key_y >= WINDOW - SHIFT)
    column_seam = (query_x >= WINDOW - SHIFT) != (key_x >= WINDOW - SHIFT)
    # Masks per class, the same for all heads.
    dtype = out.dtype.element_ty
    missing = tl.where(is_key, 0.0, NO_KEY).to(dtype)
    across_columns = column_seam.to(dtype) * SHIFT_MASK
    across_rows = row_seam.to(dtype) * SHIFT_MASK
    across_both = (row_seam | column_seam).to(dtype) * SHIFT_MASK
    first_head = tl.program_id(1) * HEADS
    table += row * heads + first_head
    out += first_head * (STORED * STORED) + pair
    step = heads * (STORED * STORED)
    for _ in range(min(heads - first_head, HEADS)):
        # Queries beyond the window get finite scores, but their outputs are not read.
        score = tl.load(table, mask=real, other=0.0).to(dtype) * LOG2E + missing
        tl.store(out, score, mask=stored)
        if SHIFT > 0:
            tl.store(out + step, score + across_columns, mask=stored)
            tl.store(out + 2 * step, score + across_rows, mask=stored)
            tl.store(out + 3 * step, score + across_both, mask=stored)
        table += 1
        out += STORED * STORED


@triton.jit
def gather_bias(
    pairs,  # [h, S * S] gradient of the scores
    out,  # [(2 w - 1) ** 2, h] output
    heads,  # h
    WINDOW: tl.constexpr,
    STORED: tl.constexpr,
    BLOCK_OFFSETS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HEADS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """Sum pairs into the table rows of one y offset, for HEADS heads.

    Grid: (2 w - 1 y offsets, groups of heads).
    """
    offset_y, first_head = tl.program_id(0) - (WINDOW - 1), tl.program_id(1) * HEADS
    column = tl.arange(0, BLOCK_OFFSETS)
    key_x = tl.arange(0, BLOCK_KEYS)
    # [x offsets, keys of one row]
    query_x = key_x[None, :] + column[:, None] - (WINDOW - 1)
    real = (query_x >= 0) & (query_x < WINDOW) & (key_x < WINDOW)[None, :]
    real = real & (column < 2 * WINDOW - 1)[:, None]
    totals = ()
    for _ in tl.static_range(HEADS):
        totals = totals + (tl.zeros([BLOCK_OFFSETS, BLOCK_KEYS], ACCUMULATOR),)
    for key_y in range(tl.maximum(0, -offset_y), tl.minimum(WINDOW, WINDOW - offset_y)):
        query = (key_y + offset_y) * WINDOW + query_x
        key = key_y * WINDOW + key_x[None, :]
        # Computed from the bits of the offset; see `pair_offsets`.
        place = query // 16 * (16 * STORED) + query % 8 * 16 + query % 16 // 8 * 2
        place += key // 8 * 128 + key % 8 // 2 * 4 + key % 2
        sums = ()
        for i in tl.static_range(HEADS):
            # Indices past the last head read the last head, and their results are not stored.
            start = pairs + tl.minimum(first_head + i, heads - 1) * (STORED * STORED)
            sums = sums + (totals[i] + tl.load(start + place, mask=real, other=0.0),)
        totals = sums
    place = out + (tl.program_id(0) * (2 * WINDOW - 1) + column) * heads + first_head
    for i in tl.static_range(HEADS):
        end = tl.where(first_head + i < heads, 2 * WINDOW - 1, 0)
        tl.store(place + i, tl.sum(totals[i], 1).to(out.dtype.element_ty), mask=column < end)


@triton.jit
def sum_parts(
    parts,  # [count, width] input
    out,  # [groups, width] output
    count,
    width,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """Sum a group of GROUP rows.

    Grid: (blocks of columns, groups of rows).
    """
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(1)
    real = column < width
    total = tl.zeros([BLOCK], ACCUMULATOR)
    parts += group.to(tl.int64) * GROUP * width
    for row in range(min(count - group * GROUP, GROUP)):
        total += tl.load(parts + row * width + column, mask=real, other=0.0)
    out += group.to(tl.int64) * width
    tl.store(out + column, total.to(out.dtype.element_ty), mask=real)
