"""Window attention kernels by tiles of queries and keys, for windows that exceed the registers.

The backward pass has three kernels: by queries, by keys, and by pairs of tokens for the bias. The
first one also writes two statistics of every query for the others: the base-2 logarithm of its sum
of exponentials, and delta, the sum over keys of the weight times its gradient.

Letters as in `triton_tokens`.
"""

# Triton's annotations do not cover what its compiler accepts: tuples and plain constants.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

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
def read_online(
    query, source, padding, bias, window, column, height, width, channels,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
    STORED: tl.constexpr, SCALE: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Attend from ROWS queries to all keys of their window, KEYS at a time.

    Returns:
        The weighted values [ROWS, BLOCK], and the base-2 logarithm of the sum of exponentials
        [ROWS].
    """
    ROWS: tl.constexpr = query.shape[0]
    peak = tl.full([ROWS], float("-inf"), ACCUMULATOR)
    total = tl.zeros([ROWS], ACCUMULATOR)
    mixed = tl.zeros(query.shape, ACCUMULATOR)
    # The first tile has a key of the window, so that the maximum is finite after it.
    for start in range(0, STORED, KEYS):
        tokens = find_tokens(start + tl.arange(0, KEYS), window, height, width, WINDOW, SHIFT)
        key, value = load_key_value(
            source, padding, tokens, column, channels, WIDTH, MASKED, PADDED
        )
        offset = load_pairs(bias + start * 16, STORED, ROWS, KEYS, True)
        score = tl.dot(query, tl.trans(key), input_precision="ieee", out_dtype=ACCUMULATOR)
        score = score * SCALE + offset
        next_peak = tl.maximum(peak, tl.max(score, 1))
        fade = tl.exp2(peak - next_peak)
        weight = tl.exp2(score - next_peak[:, None])
        total = total * fade + tl.sum(weight, 1)
        mixed = tl.dot(
            weight.to(query.dtype), value, mixed * fade[:, None],
            input_precision="ieee", out_dtype=ACCUMULATOR,
        )  # fmt: skip
        peak = next_peak
    return mixed * (1.0 / total)[:, None], peak + tl.log2(total)


@triton.jit
def tiled_forward(
    qkv,  # [B, H, W, 3, h, d] input
    bias,  # [classes, h, S * S] expanded bias in base 2, as `pair_offsets` orders it
    padding,  # [3, h, d] query, key and value of padded positions
    sizes,  # [B, 2] height and width of each sample's own map, or None
    out,  # [B, H, W, h, d] output
    height,  # H
    width,  # W
    down,  # windows along H
    across,  # windows along W
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STORED: tl.constexpr, SCALE: tl.constexpr,
    MASKED: tl.constexpr, PADDED: tl.constexpr, SIZED: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Attend from ROWS queries of a window.

    Grid: (B nW * tiles of queries, h).
    """
    head, heads = tl.program_id(1), tl.num_programs(1)
    number, start = tl.program_id(0) // (STORED // ROWS), tl.program_id(0) % (STORED // ROWS) * ROWS
    window, bias_class, sample = find_window(
        number, sizes, height, width, down, across, WINDOW, SHIFT, SIZED
    )
    channels = heads * WIDTH
    first_token = sample.to(tl.int64) * height * width
    source = qkv + first_token * (3 * channels) + head * WIDTH
    column = tl.arange(0, BLOCK)
    tokens = find_tokens(start + tl.arange(0, ROWS), window, height, width, WINDOW, SHIFT)
    query = load_tokens(source, tokens, column, 3 * channels, WIDTH, MASKED)
    mixed, _ = read_online(
        query, source, padding + head * WIDTH,
        bias + (bias_class * heads + head) * (STORED * STORED) + start * STORED,
        window, column, height, width, channels,
        WINDOW, SHIFT, WIDTH, KEYS, STORED, SCALE, MASKED, PADDED, ACCUMULATOR,
    )  # fmt: skip
    target = out + first_token * channels + head * WIDTH
    store_tokens(target, mixed, tokens, column, channels, WIDTH, MASKED, SIZED)


@triton.jit
def tiled_backward_queries(
    qkv,  # [B, H, W, 3, h, d] input
    grad,  # [B, H, W, h, d] gradient of the output
    bias,  # [classes, h, S * S] expanded bias in base 2, as `pair_offsets` orders it
    padding,  # [3, h, d] query, key and value of padded positions
    sizes,  # [B, 2] height and width of each sample's own map, or None
    grad_qkv,  # [B, H, W, 3, h, d] output: queries
    statistics,  # [B nW, h, 2, S] output: logsumexp in base 2, and delta
    height,  # H
    width,  # W
    down,  # windows along H
    across,  # windows along W
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STORED: tl.constexpr, SCALE: tl.constexpr,
    QUERY_SCALE: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr, SIZED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of ROWS queries of a window, and their statistics.

    Grid: (B nW * tiles of queries, h).
    """
    head, heads = tl.program_id(1), tl.num_programs(1)
    number, first = tl.program_id(0) // (STORED // ROWS), tl.program_id(0) % (STORED // ROWS) * ROWS
    window, bias_class, sample = find_window(
        number, sizes, height, width, down, across, WINDOW, SHIFT, SIZED
    )
    channels = heads * WIDTH
    first_token = sample.to(tl.int64) * height * width
    source = qkv + first_token * (3 * channels) + head * WIDTH
    upstream = grad + first_token * channels + head * WIDTH
    padding += head * WIDTH
    bias += (bias_class * heads + head) * (STORED * STORED) + first * STORED
    column = tl.arange(0, BLOCK)
    position = first + tl.arange(0, ROWS)
    tokens = find_tokens(position, window, height, width, WINDOW, SHIFT)
    query = load_tokens(source, tokens, column, 3 * channels, WIDTH, MASKED)
    out_grad = load_tokens(upstream, tokens, column, channels, WIDTH, MASKED)
    mixed, logarithm = read_online(
        query, source, padding, bias, window, column, height, width, channels,
        WINDOW, SHIFT, WIDTH, KEYS, STORED, SCALE, MASKED, PADDED, ACCUMULATOR,
    )  # fmt: skip
    inner = tl.sum(mixed * out_grad, 1)
    query_grad = tl.zeros([ROWS, BLOCK], ACCUMULATOR)
    for start in range(0, STORED, KEYS):
        key_tokens = find_tokens(start + tl.arange(0, KEYS), window, height, width, WINDOW, SHIFT)
        key, value = load_key_value(
            source, padding, key_tokens, column, channels, WIDTH, MASKED, PADDED
        )
        offset = load_pairs(bias + start * 16, STORED, ROWS, KEYS, True)
        score = tl.dot(query, tl.trans(key), input_precision="ieee", out_dtype=ACCUMULATOR)
        share = tl.exp2(score * SCALE + offset - logarithm[:, None])
        change = tl.dot(out_grad, tl.trans(value), input_precision="ieee", out_dtype=ACCUMULATOR)
        score_grad = share * (change - inner[:, None])
        query_grad = tl.dot(
            score_grad.to(query.dtype), key, query_grad,
            input_precision="ieee", out_dtype=ACCUMULATOR,
        )  # fmt: skip
    target = grad_qkv + first_token * (3 * channels) + head * WIDTH
    query_grad = query_grad * QUERY_SCALE
    store_tokens(target, query_grad, tokens, column, 3 * channels, WIDTH, MASKED, SIZED)
    row = statistics + (number.to(tl.int64) * heads + head) * (2 * STORED) + position
    tl.store(row, logarithm)
    tl.store(row + STORED, inner)


@triton.jit
def tiled_backward_keys(
    qkv,  # [B, H, W, 3, h, d] input
    grad,  # [B, H, W, h, d] gradient of the output
    bias,  # [classes, h, S * S] expanded bias in base 2, keys along rows
    padding,  # [3, h, d] query, key and value of padded positions
    sizes,  # [B, 2] height and width of each sample's own map, or None
    statistics,  # [B nW, h, 2, S] logsumexp in base 2, and delta
    grad_qkv,  # [B, H, W, 3, h, d] output: keys and values
    grad_padding,  # [grid 0, 2, h, d] output: keys and values of padded positions
    height,  # H
    width,  # W
    down,  # windows along H
    across,  # windows along W
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STORED: tl.constexpr, SCALE: tl.constexpr,
    QUERY_SCALE: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr, SIZED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of KEYS keys and values of a window, and of padding.

    Grid: (B nW * tiles of keys, h). Scores have keys along rows, so that no product needs them
    transposed; `bias` is stored that way.
    """
    head, heads = tl.program_id(1), tl.num_programs(1)
    number, first = tl.program_id(0) // (STORED // KEYS), tl.program_id(0) % (STORED // KEYS) * KEYS
    window, bias_class, sample = find_window(
        number, sizes, height, width, down, across, WINDOW, SHIFT, SIZED
    )
    channels = heads * WIDTH
    first_token = sample.to(tl.int64) * height * width
    source = qkv + first_token * (3 * channels) + head * WIDTH
    upstream = grad + first_token * channels + head * WIDTH
    padding += head * WIDTH
    bias += (bias_class * heads + head) * (STORED * STORED) + first * STORED
    statistics += (number.to(tl.int64) * heads + head) * (2 * STORED)
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
        out_grad = load_tokens(upstream, tokens, column, channels, WIDTH, MASKED)
        offset = load_pairs(bias + start * 16, STORED, KEYS, ROWS, True)
        score = tl.dot(key, tl.trans(query), input_precision="ieee", out_dtype=ACCUMULATOR)
        share = tl.exp2(score * SCALE + offset - tl.load(statistics + position)[None, :])
        value_grad = tl.dot(
            share.to(query.dtype), out_grad, value_grad,
            input_precision="ieee", out_dtype=ACCUMULATOR,
        )  # fmt: skip
        change = tl.dot(value, tl.trans(out_grad), input_precision="ieee", out_dtype=ACCUMULATOR)
        score_grad = share * (change - tl.load(statistics + STORED + position)[None, :])
        key_grad = tl.dot(
            score_grad.to(query.dtype), query, key_grad,
            input_precision="ieee", out_dtype=ACCUMULATOR,
        )  # fmt: skip
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
    bias,  # [classes, h, S * S] expanded bias in base 2, as `pair_offsets` orders it
    padding,  # [3, h, d] query, key and value of padded positions
    sizes,  # [B, 2] height and width of each sample's own map, or None
    statistics,  # [B nW, h, 2, S] logsumexp in base 2, and delta
    grad_bias,  # [chunks, h, S * S] output; [1, h, S * S] zeros at first if ATOMIC
    height,  # H
    width,  # W
    down,  # windows along H
    across,  # windows along W
    windows,  # B nW
    windows_per_chunk,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STORED: tl.constexpr, SCALE: tl.constexpr,
    MASKED: tl.constexpr, PADDED: tl.constexpr, SIZED: tl.constexpr, ATOMIC: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of the bias for ROWS queries by KEYS keys over a chunk of windows.

    Grid: (tiles of pairs, h, chunks). The gradient stays in registers over all windows of a chunk,
    which have the same pairs.
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
        number = first_window + step
        window, bias_class, sample = find_window(
            number, sizes, height, width, down, across, WINDOW, SHIFT, SIZED
        )
        first_token = sample.to(tl.int64) * height * width
        source = qkv + first_token * (3 * channels) + head * WIDTH
        upstream = grad + first_token * channels + head * WIDTH
        tokens = find_tokens(position, window, height, width, WINDOW, SHIFT)
        key_tokens = find_tokens(key_position, window, height, width, WINDOW, SHIFT)
        query = load_tokens(source, tokens, column, 3 * channels, WIDTH, MASKED)
        out_grad = load_tokens(upstream, tokens, column, channels, WIDTH, MASKED)
        key, value = load_key_value(
            source, padding, key_tokens, column, channels, WIDTH, MASKED, PADDED
        )
        row = statistics + (number.to(tl.int64) * heads + head) * (2 * STORED) + position
        flat = tl.load(bias + (bias_class * heads + head) * (STORED * STORED) + pairs)
        offset = unflatten_pairs(flat, ROWS, KEYS, True)
        score = tl.dot(query, tl.trans(key), input_precision="ieee", out_dtype=ACCUMULATOR)
        share = tl.exp2(score * SCALE + offset - tl.load(row)[:, None])
        change = tl.dot(out_grad, tl.trans(value), input_precision="ieee", out_dtype=ACCUMULATOR)
        total += share * (change - tl.load(row + STORED)[:, None])
    flat = flatten_pairs(total, ROWS, KEYS, True)
    if ATOMIC:
        tl.atomic_add(grad_bias + head * (STORED * STORED) + pairs, flat, sem="relaxed")
    else:
        part = (chunk * heads + head).to(tl.int64) * (STORED * STORED)
        tl.store(grad_bias + part + pairs, flat)
