"""Window attention kernels that loop over tiles of keys, for windows too large for registers.

The backward pass has three kernels: for queries, for keys and values, and for the bias. The first
also writes two statistics per query for the other two: the base-2 logsumexp and delta. Delta is the
sum over keys of the weights times their gradients.

Notation is as in `triton_tokens`.
"""

# Triton's type annotations do not cover all that its compiler accepts: tuples, plain constants.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from ..runtime.triton_math import dot
from .triton_tokens import (
    find_tokens,
    find_window,
    flatten_pairs,
    load_key_value,
    load_pairs,
    load_tokens,
    pair_offsets,
    store_tokens,
    unflatten_pairs,
)


@triton.jit
def attend_online(
    query, source, padding, bias, window, column, height, width, channels,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
    STORED: tl.constexpr, SCALE: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Attend from ROWS queries to all keys of their window, KEYS at a time.

    Returns:
        The output [ROWS, BLOCK], and the base-2 logsumexp [ROWS].
    """
    ROWS: tl.constexpr = query.shape[0]
    maximum = tl.full([ROWS], float("-inf"), ACCUMULATOR)
    total = tl.zeros([ROWS], ACCUMULATOR)
    attended = tl.zeros(query.shape, ACCUMULATOR)
    # The maximum is finite after the first tile, which contains a key of the window.
    for start in range(0, STORED, KEYS):
        tokens = find_tokens(start + tl.arange(0, KEYS), window, height, width, WINDOW, SHIFT)
        key, value = load_key_value(
            source, padding, tokens, column, channels, WIDTH, MASKED, PADDED
        )
        offset = load_pairs(bias + start * 16, STORED, ROWS, KEYS, True)
        score = dot(query, tl.trans(key), ACCUMULATOR)
        score = score * SCALE + offset
        new_maximum = tl.maximum(maximum, tl.max(score, 1))
        rescale = tl.exp2(maximum - new_maximum)
        weight = tl.exp2(score - new_maximum[:, None])
        total = total * rescale + tl.sum(weight, 1)
        attended = dot(weight.to(query.dtype), value, ACCUMULATOR, attended * rescale[:, None])
        maximum = new_maximum
    return attended * (1.0 / total)[:, None], maximum + tl.log2(total)


@triton.jit
def tiled_forward(
    qkv,  # [B, H, W, 3, h, d] input
    bias,  # [classes, h, S * S] expanded bias in base 2, in the order of `pair_offsets`
    padding,  # [3, h, d] query, key and value at padded positions
    sizes,  # [B, 2] height and width of each sample's valid region, or None
    out,  # [B, H, W, h, d] output
    height, width,  # H, W
    down, across,  # windows along H and W
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STORED: tl.constexpr, SCALE: tl.constexpr,
    MASKED: tl.constexpr, PADDED: tl.constexpr, SIZED: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Compute the output of ROWS queries of a window.

    Grid: (B nW * tiles of queries, h).
    """
    head, heads = tl.program_id(1), tl.num_programs(1)
    window_index, start = (
        tl.program_id(0) // (STORED // ROWS),
        tl.program_id(0) % (STORED // ROWS) * ROWS,
    )
    window, bias_class, first_token = find_window(
        window_index, sizes, height, width, down, across, WINDOW, SHIFT, SIZED
    )
    channels = heads * WIDTH
    source = qkv + first_token * (3 * channels) + head * WIDTH
    column = tl.arange(0, BLOCK)
    tokens = find_tokens(start + tl.arange(0, ROWS), window, height, width, WINDOW, SHIFT)
    query = load_tokens(source, tokens, column, 3 * channels, WIDTH, MASKED)
    attended, _ = attend_online(
        query, source, padding + head * WIDTH,
        bias + (bias_class * heads + head) * (STORED * STORED) + start * STORED,
        window, column, height, width, channels,
        WINDOW, SHIFT, WIDTH, KEYS, STORED, SCALE, MASKED, PADDED, ACCUMULATOR,
    )  # fmt: skip
    target = out + first_token * channels + head * WIDTH
    store_tokens(target, attended, tokens, column, channels, WIDTH, MASKED, SIZED)


@triton.jit
def tiled_backward_queries(
    qkv,  # [B, H, W, 3, h, d] input
    grad,  # [B, H, W, h, d] gradient of the output
    bias,  # [classes, h, S * S] expanded bias in base 2, in the order of `pair_offsets`
    padding,  # [3, h, d] query, key and value at padded positions
    sizes,  # [B, 2] height and width of each sample's valid region, or None
    grad_qkv,  # [B, H, W, 3, h, d] output: queries
    statistics,  # [B nW, h, 2, S] output: logsumexp in base 2, and delta
    height, width,  # H, W
    down, across,  # windows along H and W
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STORED: tl.constexpr, SCALE: tl.constexpr,
    QUERY_SCALE: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr, SIZED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Compute the gradient and the statistics of ROWS queries of a window.

    Grid: (B nW * tiles of queries, h).
    """
    head, heads = tl.program_id(1), tl.num_programs(1)
    window_index, first = (
        tl.program_id(0) // (STORED // ROWS),
        tl.program_id(0) % (STORED // ROWS) * ROWS,
    )
    window, bias_class, first_token = find_window(
        window_index, sizes, height, width, down, across, WINDOW, SHIFT, SIZED
    )
    channels = heads * WIDTH
    source = qkv + first_token * (3 * channels) + head * WIDTH
    grads = grad + first_token * channels + head * WIDTH
    padding += head * WIDTH
    bias += (bias_class * heads + head) * (STORED * STORED) + first * STORED
    column = tl.arange(0, BLOCK)
    position = first + tl.arange(0, ROWS)
    tokens = find_tokens(position, window, height, width, WINDOW, SHIFT)
    query = load_tokens(source, tokens, column, 3 * channels, WIDTH, MASKED)
    out_grad = load_tokens(grads, tokens, column, channels, WIDTH, MASKED)
    attended, logsumexp = attend_online(
        query, source, padding, bias, window, column, height, width, channels,
        WINDOW, SHIFT, WIDTH, KEYS, STORED, SCALE, MASKED, PADDED, ACCUMULATOR,
    )  # fmt: skip
    delta = tl.sum(attended * out_grad, 1)
    query_grad = tl.zeros([ROWS, BLOCK], ACCUMULATOR)
    for start in range(0, STORED, KEYS):
        key_tokens = find_tokens(start + tl.arange(0, KEYS), window, height, width, WINDOW, SHIFT)
        key, value = load_key_value(
            source, padding, key_tokens, column, channels, WIDTH, MASKED, PADDED
        )
        offset = load_pairs(bias + start * 16, STORED, ROWS, KEYS, True)
        score = dot(query, tl.trans(key), ACCUMULATOR)
        weight = tl.exp2(score * SCALE + offset - logsumexp[:, None])
        grad_weight = dot(out_grad, tl.trans(value), ACCUMULATOR)
        score_grad = weight * (grad_weight - delta[:, None])
        query_grad = dot(score_grad.to(query.dtype), key, ACCUMULATOR, query_grad)
    target = grad_qkv + first_token * (3 * channels) + head * WIDTH
    query_grad = query_grad * QUERY_SCALE
    store_tokens(target, query_grad, tokens, column, 3 * channels, WIDTH, MASKED, SIZED)
    row = statistics + (window_index.to(tl.int64) * heads + head) * (2 * STORED) + position
    tl.store(row, logsumexp)
    tl.store(row + STORED, delta)


@triton.jit
def tiled_backward_keys(
    qkv,  # [B, H, W, 3, h, d] input
    grad,  # [B, H, W, h, d] gradient of the output
    bias,  # [classes, h, S * S] expanded bias in base 2, keys along rows
    padding,  # [3, h, d] query, key and value at padded positions
    sizes,  # [B, 2] height and width of each sample's valid region, or None
    statistics,  # [B nW, h, 2, S] logsumexp in base 2, and delta
    grad_qkv,  # [B, H, W, 3, h, d] output: keys and values
    grad_padding,  # [grid 0, 2, h, d] output: keys and values at padded positions
    height, width,  # H, W
    down, across,  # windows along H and W
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STORED: tl.constexpr, SCALE: tl.constexpr,
    QUERY_SCALE: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr, SIZED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a tile of KEYS keys and values in a window, padding included.

    Grid: (B nW * tiles of keys, h). Scores and `bias` are laid out as (keys, queries), so that
    scores need not be transposed before each product.
    """
    head, heads = tl.program_id(1), tl.num_programs(1)
    window_index, first = (
        tl.program_id(0) // (STORED // KEYS),
        tl.program_id(0) % (STORED // KEYS) * KEYS,
    )
    window, bias_class, first_token = find_window(
        window_index, sizes, height, width, down, across, WINDOW, SHIFT, SIZED
    )
    channels = heads * WIDTH
    source = qkv + first_token * (3 * channels) + head * WIDTH
    grads = grad + first_token * channels + head * WIDTH
    padding += head * WIDTH
    bias += (bias_class * heads + head) * (STORED * STORED) + first * STORED
    statistics += (window_index.to(tl.int64) * heads + head) * (2 * STORED)
    column = tl.arange(0, BLOCK)
    key_tokens = find_tokens(first + tl.arange(0, KEYS), window, height, width, WINDOW, SHIFT)
    key, value = load_key_value(
        source, padding, key_tokens, column, channels, WIDTH, MASKED, PADDED
    )
    key_grad = tl.zeros([KEYS, BLOCK], ACCUMULATOR)
    value_grad = tl.zeros([KEYS, BLOCK], ACCUMULATOR)
    for start in range(0, STORED, ROWS):
        position = start + tl.arange(0, ROWS)
        tokens = find_tokens(position, window, height, width, WINDOW, SHIFT)
        query = load_tokens(source, tokens, column, 3 * channels, WIDTH, MASKED)
        out_grad = load_tokens(grads, tokens, column, channels, WIDTH, MASKED)
        offset = load_pairs(bias + start * 16, STORED, KEYS, ROWS, True)
        score = dot(key, tl.trans(query), ACCUMULATOR)
        weight = tl.exp2(score * SCALE + offset - tl.load(statistics + position)[None, :])
        value_grad = dot(weight.to(query.dtype), out_grad, ACCUMULATOR, value_grad)
        grad_weight = dot(value, tl.trans(out_grad), ACCUMULATOR)
        score_grad = weight * (grad_weight - tl.load(statistics + STORED + position)[None, :])
        key_grad = dot(score_grad.to(query.dtype), query, ACCUMULATOR, key_grad)
    key_grad = key_grad * QUERY_SCALE
    target = grad_qkv + first_token * (3 * channels) + head * WIDTH + channels
    store_tokens(target, key_grad, key_tokens, column, 3 * channels, WIDTH, MASKED, SIZED)
    target += channels
    store_tokens(target, value_grad, key_tokens, column, 3 * channels, WIDTH, MASKED, SIZED)
    if PADDED:
        _index, _valid, _stored, padded = key_tokens
        padded = padded[:, None]
        part = tl.program_id(0).to(tl.int64) * (2 * channels) + head * WIDTH
        part = grad_padding + part + column
        tl.store(part, tl.sum(tl.where(padded, key_grad, 0.0), 0), mask=column < WIDTH)
        part += channels
        tl.store(part, tl.sum(tl.where(padded, value_grad, 0.0), 0), mask=column < WIDTH)


@triton.jit
def tiled_backward_bias(
    qkv,  # [B, H, W, 3, h, d] input
    grad,  # [B, H, W, h, d] gradient of the output
    bias,  # [classes, h, S * S] expanded bias in base 2, in the order of `pair_offsets`
    padding,  # [3, h, d] query, key and value at padded positions
    sizes,  # [B, 2] height and width of each sample's valid region, or None
    statistics,  # [B nW, h, 2, S] logsumexp in base 2, and delta
    grad_bias,  # [chunks, h, S * S] output; [1, h, S * S] initially 0, if ATOMIC
    height, width,  # H, W
    down, across,  # windows along H and W
    windows,  # B nW
    windows_per_chunk,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STORED: tl.constexpr, SCALE: tl.constexpr,
    MASKED: tl.constexpr, PADDED: tl.constexpr, SIZED: tl.constexpr, ATOMIC: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of the bias for ROWS queries by KEYS keys over a chunk of windows.

    Grid: (tiles of pairs, h, chunks). The gradient stays in registers across all windows of a
    chunk, since they share the bias.
    """
    head, heads, chunk = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    channels = heads * WIDTH
    across_tiles = STORED // KEYS
    first = tl.program_id(0) // across_tiles * ROWS
    first_key = tl.program_id(0) % across_tiles * KEYS
    position, key_position = first + tl.arange(0, ROWS), first_key + tl.arange(0, KEYS)
    padding += head * WIDTH
    column = tl.arange(0, BLOCK)
    pairs = pair_offsets(STORED, ROWS, KEYS, True) + first * STORED + first_key * 16
    total = tl.zeros([ROWS, KEYS], ACCUMULATOR)
    first_window = chunk * windows_per_chunk
    for step in range(min(windows - first_window, windows_per_chunk)):
        window_index = first_window + step
        window, bias_class, first_token = find_window(
            window_index, sizes, height, width, down, across, WINDOW, SHIFT, SIZED
        )
        source = qkv + first_token * (3 * channels) + head * WIDTH
        grads = grad + first_token * channels + head * WIDTH
        tokens = find_tokens(position, window, height, width, WINDOW, SHIFT)
        key_tokens = find_tokens(key_position, window, height, width, WINDOW, SHIFT)
        query = load_tokens(source, tokens, column, 3 * channels, WIDTH, MASKED)
        out_grad = load_tokens(grads, tokens, column, channels, WIDTH, MASKED)
        key, value = load_key_value(
            source, padding, key_tokens, column, channels, WIDTH, MASKED, PADDED
        )
        row = statistics + (window_index.to(tl.int64) * heads + head) * (2 * STORED) + position
        flat = tl.load(bias + (bias_class * heads + head) * (STORED * STORED) + pairs)
        offset = unflatten_pairs(flat, ROWS, KEYS, True)
        score = dot(query, tl.trans(key), ACCUMULATOR)
        weight = tl.exp2(score * SCALE + offset - tl.load(row)[:, None])
        grad_weight = dot(out_grad, tl.trans(value), ACCUMULATOR)
        total += weight * (grad_weight - tl.load(row + STORED)[:, None])
    flat = flatten_pairs(total, ROWS, KEYS, True)
    if ATOMIC:
        tl.atomic_add(grad_bias + head * (STORED * STORED) + pairs, flat, sem="relaxed")
    else:
        part = (chunk * heads + head).to(tl.int64) * (STORED * STORED)
        tl.store(grad_bias + part + pairs, flat)
