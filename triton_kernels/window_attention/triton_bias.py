"""Relative position bias: its table written out for pairs of tokens, and the gradient's way back.

Pairs are stored in fragments, as `triton_tokens` says.

Letters: h heads, w window side, N = w * w tokens of a window, S >= N rows and columns that are
stored for a window, a multiple of 16 (so that the attention kernels read whole tiles).
"""

# The types of Triton's language do not say what its compiler takes.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.launch import Launch
from ..runtime.tiles import tile

#: Scores are kept in base 2, so that exponentials are one instruction.
LOG2E = math.log2(math.e)
#: Score of a key that is not there, in base 2: its weight is 0 beside that of any other key.
NO_KEY = -1.0e30
#: Score that is added where two tokens come from different sides of a seam (Swin's constant).
PARTED = -100.0


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """The dtype of scores and sums: float64 for float64, float32 for all others."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def plan_expand(
    table: Tensor, window_size: int, shift: int, stored: int, dtype: torch.dtype, transposed: bool
) -> tuple[list[Launch], Tensor]:
    """Write the bias out for every pair of tokens and every class of windows.

    Args:
        table: ((2 w - 1) ** 2, h).
        window_size: w.
        shift: roll of the map in tokens; without one there is one class, else four: twice (the
            window lies across the seam between rows) plus (across that between columns).
        stored: S.
        dtype: of the attention's inputs.
        transposed: keys along rows instead of queries.

    Returns:
        What to launch, and (classes, h, S * S) scores in base 2, shift mask included, float32 or
        (for float64) float64. Keys from N on have a score of `NO_KEY`.
    """
    heads = table.shape[1]
    classes = 4 if shift else 1
    double = dtype == torch.float64
    out = torch.empty(
        classes,
        heads,
        stored * stored,
        dtype=torch.float64 if double else torch.float32,
        device=table.device,
    )
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
            "PARTED": PARTED * LOG2E,
        },
        num_warps=sizes["num_warps"],
        num_stages=sizes["num_stages"],
    )
    return [launch], out


def plan_reduce(
    parts: Tensor, table: Tensor, window_size: int, stored: int, dtype: torch.dtype
) -> tuple[list[Launch], Tensor]:
    """Add up the bias's gradient, chunk by chunk and then pair by pair, in an order of its own.

    Args:
        parts: (chunks, h, S * S) gradient of the scores, queries along rows; what stands beyond
            the first N rows and columns is not read.
        table: ((2 w - 1) ** 2, h), whose gradient is wanted.
        window_size: w.
        stored: S.
        dtype: of the attention's inputs.

    Returns:
        What to launch, and the gradient in the table's shape and dtype.
    """
    chunks, heads, _ = parts.shape
    launches = []
    if chunks > 1:
        summed = torch.empty_like(parts[0])
        launches, summed = plan_sum(parts.view(chunks, -1), summed.view(-1), dtype)
    else:
        summed = parts
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
    """Add the rows of `parts` (n, M) into `out` (M,), always in the same order.

    Args:
        parts: (n, M) contiguous.
        out: (M,) contiguous; its dtype may be another.
        dtype: of the attention's inputs.

    Returns:
        What to launch, and `out`.
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
    table,
    out,
    heads,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    STORED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    LOG2E: tl.constexpr,
    NO_KEY: tl.constexpr,
    PARTED: tl.constexpr,
):
    """Grid (blocks of pairs, groups of heads): the index of a pair serves all heads of a group."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    # Row and column from the bits of the offset, which `pair_places` describes.
    inside = pair % 128
    first = pair // (16 * STORED) * 16 + inside // 2 % 2 * 8 + inside // 16
    second = pair % (16 * STORED) // 128 * 8 + inside // 4 % 4 * 2 + inside % 2
    if TRANSPOSED:
        key, query = first, second
    else:
        query, key = first, second
    query_y, query_x, key_y, key_x = (
        query // WINDOW,
        query % WINDOW,
        key // WINDOW,
        key % WINDOW,
    )
    row = (query_y - key_y + WINDOW - 1) * (2 * WINDOW - 1) + query_x - key_x + WINDOW - 1
    stored = pair < STORED * STORED
    is_key = key < WINDOW * WINDOW
    real = is_key & (query < WINDOW * WINDOW)
    rows_parted = (query_y >= WINDOW - SHIFT) != (key_y >= WINDOW - SHIFT)
    columns_parted = (query_x >= WINDOW - SHIFT) != (key_x >= WINDOW - SHIFT)
    # What is added in each class, the same for all heads.
    dtype = out.dtype.element_ty
    missing = tl.where(is_key, 0.0, NO_KEY).to(dtype)
    across_columns = columns_parted.to(dtype) * PARTED
    across_rows = rows_parted.to(dtype) * PARTED
    across_both = (rows_parted | columns_parted).to(dtype) * PARTED
    first_head = tl.program_id(1) * HEADS
    table += row * heads + first_head
    out += first_head * (STORED * STORED) + pair
    step = heads * (STORED * STORED)
    for _ in range(min(heads - first_head, HEADS)):
        # Queries beyond the window keep finite scores: nobody reads what comes of them.
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
    pairs,
    out,
    heads,
    WINDOW: tl.constexpr,
    STORED: tl.constexpr,
    BLOCK_OFFSETS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HEADS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """Grid (2 w - 1 offsets along y, groups of heads): rows of the table with one offset along y.

    The index of a pair serves all heads of a group.
    """
    offset_y, first_head = tl.program_id(0) - (WINDOW - 1), tl.program_id(1) * HEADS
    column = tl.arange(0, BLOCK_OFFSETS)
    key_x = tl.arange(0, BLOCK_KEYS)
    # (offsets along x, keys of one row)
    query_x = key_x[None, :] + column[:, None] - (WINDOW - 1)
    real = (query_x >= 0) & (query_x < WINDOW) & (key_x < WINDOW)[None, :]
    real = real & (column < 2 * WINDOW - 1)[:, None]
    totals = ()
    for _ in tl.static_range(HEADS):
        totals = totals + (tl.zeros([BLOCK_OFFSETS, BLOCK_KEYS], ACCUMULATOR),)
    for key_y in range(tl.maximum(0, -offset_y), tl.minimum(WINDOW, WINDOW - offset_y)):
        query = (key_y + offset_y) * WINDOW + query_x
        key = key_y * WINDOW + key_x[None, :]
        # The offset's bits, which `pair_places` describes.
        place = query // 16 * (16 * STORED) + query % 8 * 16 + query % 16 // 8 * 2
        place += key // 8 * 128 + key % 8 // 2 * 4 + key % 2
        sums = ()
        for i in tl.static_range(HEADS):
            # A head too many reads the last one again, and is not stored.
            start = pairs + tl.minimum(first_head + i, heads - 1) * (STORED * STORED)
            sums = sums + (totals[i] + tl.load(start + place, mask=real, other=0.0),)
        totals = sums
    place = out + (tl.program_id(0) * (2 * WINDOW - 1) + column) * heads + first_head
    for i in tl.static_range(HEADS):
        end = tl.where(first_head + i < heads, 2 * WINDOW - 1, 0)
        tl.store(place + i, tl.sum(totals[i], 1).to(out.dtype.element_ty), mask=column < end)


@triton.jit
def sum_parts(
    parts,
    out,
    count,
    width,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """Grid (blocks of columns, groups of rows): the sum of each group of rows."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(1)
    real = column < width
    total = tl.zeros([BLOCK], ACCUMULATOR)
    parts += group.to(tl.int64) * GROUP * width
    for row in range(min(count - group * GROUP, GROUP)):
        total += tl.load(parts + row * width + column, mask=real, other=0.0)
    out += group.to(tl.int64) * width
    tl.store(out + column, total.to(out.dtype.element_ty), mask=real)
