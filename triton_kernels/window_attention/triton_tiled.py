"""Window attention in tiles of queries and keys, for windows whose rows do not fit into registers.

The backward pass has three kernels: one by queries, which also leaves for the others two numbers
for every query (the base-2 logarithm of its sum of exponentials, and the sum over keys of share
times the share's gradient), one by keys, and one by pairs of tokens for the bias.

Letters as in `triton_tokens`.
"""

# The types of Triton's language do not say what its compiler takes: tuples, constants as they are.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from .triton_tokens import (
    find_tokens,
    find_window,
    flatten_pairs,
    load_keys,
    load_pairs,
    load_tokens,
    pair_places,
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
    """Attend from some queries to all keys of their window, KEYS at a time.

    Returns:
        The weighted values (queries, columns) and the base-2 logarithm of the sum of exponentials
        (queries,).
    """
    ROWS: tl.constexpr = query.shape[0]
    peak = tl.full([ROWS], float("-inf"), ACCUMULATOR)
    total = tl.zeros([ROWS], ACCUMULATOR)
    mixed = tl.zeros(query.shape, ACCUMULATOR)
    # The first tile holds a key of the window, so that the maximum is finite from then on.
    for start in range(0, STORED, KEYS):
        tokens = find_tokens(start + tl.arange(0, KEYS), window, height, width, WINDOW, SHIFT)
        key = load_keys(
            source + channels, padding + channels, tokens, column, 3 * channels, WIDTH, MASKED,
            PADDED,
        )  # fmt: skip
        value = load_keys(
            source + 2 * channels, padding + 2 * channels, tokens, column, 3 * channels, WIDTH,
            MASKED, PADDED,
        )  # fmt: skip
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
    qkv, bias, padding, sizes, out, height, width, down, across,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STORED: tl.constexpr, SCALE: tl.constexpr,
    MASKED: tl.constexpr, PADDED: tl.constexpr, SIZED: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Grid (B nW times tiles of ROWS queries, h)."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    number, start = tl.program_id(0) // (STORED // ROWS), tl.program_id(0) % (STORED // ROWS) * ROWS
    window = find_window(number, sizes, height, width, down, across, WINDOW, SHIFT, SIZED)
    channels = heads * WIDTH
    first_token = window[7].to(tl.int64) * height * width
    source = qkv + first_token * (3 * channels) + head * WIDTH
    column = tl.arange(0, BLOCK)
    tokens = find_tokens(start + tl.arange(0, ROWS), window, height, width, WINDOW, SHIFT)
    query = load_tokens(source, tokens, column, 3 * channels, WIDTH, MASKED)
    mixed, _ = read_online(
        query, source, padding + head * WIDTH,
        bias + (window[6] * heads + head) * (STORED * STORED) + start * STORED,
        window, column, height, width, channels,
        WINDOW, SHIFT, WIDTH, KEYS, STORED, SCALE, MASKED, PADDED, ACCUMULATOR,
    )  # fmt: skip
    target = out + first_token * channels + head * WIDTH
    store_tokens(target, mixed, tokens, column, channels, WIDTH, MASKED, SIZED)


@triton.jit
def tiled_backward_queries(
    qkv, grad, bias, padding, sizes, grad_qkv, statistics, height, width, down, across,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STORED: tl.constexpr, SCALE: tl.constexpr,
    QUERY_SCALE: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr, SIZED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Grid (B nW times tiles of ROWS queries, h): the queries' gradient and their statistics."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    number, first = tl.program_id(0) // (STORED // ROWS), tl.program_id(0) % (STORED // ROWS) * ROWS
    window = find_window(number, sizes, height, width, down, across, WINDOW, SHIFT, SIZED)
    channels = heads * WIDTH
    first_token = window[7].to(tl.int64) * height * width
    source = qkv + first_token * (3 * channels) + head * WIDTH
    upstream = grad + first_token * channels + head * WIDTH
    padding += head * WIDTH
    bias += (window[6] * heads + head) * (STORED * STORED) + first * STORED
    column = tl.arange(0, BLOCK)
    place = first + tl.arange(0, ROWS)
    tokens = find_tokens(place, window, height, width, WINDOW, SHIFT)
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
        key = load_keys(
            source + channels, padding + channels, key_tokens, column, 3 * channels, WIDTH,
            MASKED, PADDED,
        )  # fmt: skip
        value = load_keys(
            source + 2 * channels, padding + 2 * channels, key_tokens, column, 3 * channels,
            WIDTH, MASKED, PADDED,
        )  # fmt: skip
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
    row = statistics + (number.to(tl.int64) * heads + head) * (2 * STORED) + place
    tl.store(row, logarithm)
    tl.store(row + STORED, inner)


@triton.jit
def tiled_backward_keys(
    qkv, grad, bias, padding, sizes, statistics, grad_qkv, grad_padding,
    height, width, down, across,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STORED: tl.constexpr, SCALE: tl.constexpr,
    QUERY_SCALE: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr, SIZED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Grid (B nW times tiles of KEYS keys, h): the gradients of keys, values and padding.

    Scores stand with keys along rows, so that they go into the next product as they are; `bias`
    is stored that way too.
    """
    head, heads = tl.program_id(1), tl.num_programs(1)
    number, first = tl.program_id(0) // (STORED // KEYS), tl.program_id(0) % (STORED // KEYS) * KEYS
    window = find_window(number, sizes, height, width, down, across, WINDOW, SHIFT, SIZED)
    channels = heads * WIDTH
    first_token = window[7].to(tl.int64) * height * width
    source = qkv + first_token * (3 * channels) + head * WIDTH
    upstream = grad + first_token * channels + head * WIDTH
    padding += head * WIDTH
    bias += (window[6] * heads + head) * (STORED * STORED) + first * STORED
    statistics += (number.to(tl.int64) * heads + head) * (2 * STORED)
    column = tl.arange(0, BLOCK)
    key_tokens = find_tokens(first + tl.arange(0, KEYS), window, height, width, WINDOW, SHIFT)
    key = load_keys(
        source + channels, padding + channels, key_tokens, column, 3 * channels, WIDTH, MASKED,
        PADDED,
    )  # fmt: skip
    value = load_keys(
        source + 2 * channels, padding + 2 * channels, key_tokens, column, 3 * channels, WIDTH,
        MASKED, PADDED,
    )  # fmt: skip
    key_grad = tl.zeros([KEYS, BLOCK], ACCUMULATOR)
    value_grad = tl.zeros([KEYS, BLOCK], ACCUMULATOR)
    for start in range(0, STORED, ROWS):
        place = start + tl.arange(0, ROWS)
        tokens = find_tokens(place, window, height, width, WINDOW, SHIFT)
        query = load_tokens(source, tokens, column, 3 * channels, WIDTH, MASKED)
        out_grad = load_tokens(upstream, tokens, column, channels, WIDTH, MASKED)
        offset = load_pairs(bias + start * 16, STORED, KEYS, ROWS, True)
        score = tl.dot(key, tl.trans(query), input_precision="ieee", out_dtype=ACCUMULATOR)
        share = tl.exp2(score * SCALE + offset - tl.load(statistics + place)[None, :])
        value_grad = tl.dot(
            share.to(query.dtype), out_grad, value_grad,
            input_precision="ieee", out_dtype=ACCUMULATOR,
        )  # fmt: skip
        change = tl.dot(value, tl.trans(out_grad), input_precision="ieee", out_dtype=ACCUMULATOR)
        score_grad = share * (change - tl.load(statistics + STORED + place)[None, :])
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
        padded = key_tokens[3][:, None]
        part = tl.program_id(0).to(tl.int64) * (2 * channels) + head * WIDTH
        part = grad_padding + part + column
        tl.store(part, tl.sum(tl.where(padded, key_grad, 0.0), 0), mask=column < WIDTH)
        part += channels
        tl.store(part, tl.sum(tl.where(padded, value_grad, 0.0), 0), mask=column < WIDTH)


@triton.jit
def tiled_backward_bias(
    qkv, grad, bias, padding, sizes, statistics, grad_bias,
    height, width, down, across, windows, windows_per_chunk,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STORED: tl.constexpr, SCALE: tl.constexpr,
    MASKED: tl.constexpr, PADDED: tl.constexpr, SIZED: tl.constexpr, ATOMIC: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of ROWS queries by KEYS keys, h, chunks of windows): the bias's gradient.

    It stays in registers over all windows of the chunk, since they have the same pairs.
    """
    head, heads, chunk = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    channels = heads * WIDTH
    across_tiles = STORED // KEYS
    first = tl.program_id(0) // across_tiles * ROWS
    first_key = tl.program_id(0) % across_tiles * KEYS
    place, key_place = first + tl.arange(0, ROWS), first_key + tl.arange(0, KEYS)
    padding += head * WIDTH
    column = tl.arange(0, BLOCK)
    pairs = pair_places(STORED, ROWS, KEYS, True) + first * STORED + first_key * 16
    total = tl.zeros([ROWS, KEYS], ACCUMULATOR)
    first_window = chunk * windows_per_chunk
    for step in range(min(windows - first_window, windows_per_chunk)):
        number = first_window + step
        window = find_window(number, sizes, height, width, down, across, WINDOW, SHIFT, SIZED)
        first_token = window[7].to(tl.int64) * height * width
        source = qkv + first_token * (3 * channels) + head * WIDTH
        upstream = grad + first_token * channels + head * WIDTH
        tokens = find_tokens(place, window, height, width, WINDOW, SHIFT)
        key_tokens = find_tokens(key_place, window, height, width, WINDOW, SHIFT)
        query = load_tokens(source, tokens, column, 3 * channels, WIDTH, MASKED)
        out_grad = load_tokens(upstream, tokens, column, channels, WIDTH, MASKED)
        key = load_keys(
            source + channels, padding + channels, key_tokens, column, 3 * channels, WIDTH,
            MASKED, PADDED,
        )  # fmt: skip
        value = load_keys(
            source + 2 * channels, padding + 2 * channels, key_tokens, column, 3 * channels,
            WIDTH, MASKED, PADDED,
        )  # fmt: skip
        row = statistics + (number.to(tl.int64) * heads + head) * (2 * STORED) + place
        flat = tl.load(bias + (window[6] * heads + head) * (STORED * STORED) + pairs)
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
