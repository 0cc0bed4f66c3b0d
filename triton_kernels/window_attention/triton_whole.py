"""Window attention kernels that keep the scores of a query against all keys in registers.

Scores are a tuple of tiles: `PIECES` lists (first key, number of keys) of each. The 144 keys of a
window of 12 are 128 + 16, where one tile would have 256. The bias is loaded before the product that
it is added to, so that the compiler keeps the product's layout for all that follows.

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
)


@triton.jit
def load_window(
    source, padding, window, column, height, width, channels, PIECES: tl.constexpr,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    """Load all keys and values of a window: two tuples of [keys of the piece, BLOCK]."""
    keys, values = (), ()
    for i in tl.static_range(len(PIECES)):
        position = PIECES[i][0] + tl.arange(0, PIECES[i][1])
        tokens = find_tokens(position, window, height, width, WINDOW, SHIFT)
        key, value = load_key_value(
            source, padding, tokens, column, channels, WIDTH, MASKED, PADDED
        )
        keys, values = keys + (key,), values + (value,)
    return keys, values


@triton.jit
def weigh(
    query, keys, bias, PIECES: tl.constexpr, STORED: tl.constexpr, SCALE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Compute the exponentials of the scores of queries against all keys, not normalized.

    Returns:
        A tuple of [ROWS, keys of the piece] exponentials, and their sum [ROWS].
    """
    ROWS: tl.constexpr = query.shape[0]
    scores = ()
    peak = tl.full([ROWS], float("-inf"), ACCUMULATOR)
    for i in tl.static_range(len(PIECES)):
        offset = load_pairs(bias + PIECES[i][0] * 16, STORED, ROWS, PIECES[i][1], False)
        score = tl.dot(query, tl.trans(keys[i]), input_precision="ieee", out_dtype=ACCUMULATOR)
        # Scale and bias are one multiply-add.
        score = score * SCALE + offset
        peak = tl.maximum(peak, tl.max(score, 1))
        scores = scores + (score,)
    weights = ()
    total = tl.zeros([ROWS], ACCUMULATOR)
    for i in tl.static_range(len(PIECES)):
        weight = tl.exp2(scores[i] - peak[:, None])
        total += tl.sum(weight, 1)
        weights = weights + (weight,)
    return weights, total


@triton.jit
def whole_forward(
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
    PIECES: tl.constexpr, STORED: tl.constexpr, ROWS: tl.constexpr, QUERIES: tl.constexpr,
    SCALE: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr, SIZED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Attend from QUERIES queries of a window, ROWS at a time.

    Grid: (B nW, h, groups of QUERIES queries).
    """
    head, heads = tl.program_id(1), tl.num_programs(1)
    window, bias_class, sample = find_window(
        tl.program_id(0), sizes, height, width, down, across, WINDOW, SHIFT, SIZED
    )
    channels = heads * WIDTH
    first_token = sample.to(tl.int64) * height * width
    source = qkv + first_token * (3 * channels) + head * WIDTH
    target = out + first_token * channels + head * WIDTH
    bias += (bias_class * heads + head) * (STORED * STORED)
    column = tl.arange(0, BLOCK)
    keys, values = load_window(
        source, padding + head * WIDTH, window, column, height, width, channels,
        PIECES, WINDOW, SHIFT, WIDTH, MASKED, PADDED,
    )  # fmt: skip
    first = tl.program_id(2) * QUERIES
    for start in range(first, min(first + QUERIES, WINDOW * WINDOW), ROWS):
        position = start + tl.arange(0, ROWS)
        tokens = find_tokens(position, window, height, width, WINDOW, SHIFT)
        query = load_tokens(source, tokens, column, 3 * channels, WIDTH, MASKED)
        weights, total = weigh(
            query, keys, bias + start * STORED, PIECES, STORED, SCALE, ACCUMULATOR
        )
        mixed = tl.zeros([ROWS, BLOCK], ACCUMULATOR)
        for i in tl.static_range(len(PIECES)):
            mixed = tl.dot(
                weights[i].to(query.dtype), values[i], mixed,
                input_precision="ieee", out_dtype=ACCUMULATOR,
            )  # fmt: skip
        mixed = mixed * (1.0 / total)[:, None]
        store_tokens(target, mixed, tokens, column, channels, WIDTH, MASKED, SIZED)


@triton.jit
def whole_backward(
    qkv,  # [B, H, W, 3, h, d] input
    grad,  # [B, H, W, h, d] gradient of the output
    bias,  # [classes, h, S * S] expanded bias in base 2, as `pair_offsets` orders it
    padding,  # [3, h, d] query, key and value of padded positions
    sizes,  # [B, 2] height and width of each sample's own map, or None
    grad_qkv,  # [B, H, W, 3, h, d] output
    grad_bias,  # [chunks, h, S * S] output, zeros at first; [1, h, S * S] if ATOMIC
    grad_padding,  # [B nW, 2, h, d] output: keys and values of padded positions
    height,  # H
    width,  # W
    down,  # windows along H
    across,  # windows along W
    windows,  # B nW
    windows_per_chunk,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    PIECES: tl.constexpr, STORED: tl.constexpr, ROWS: tl.constexpr, SCALE: tl.constexpr,
    QUERY_SCALE: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr, SIZED: tl.constexpr,
    ATOMIC: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Compute all gradients of a chunk of windows, ROWS queries at a time.

    Grid: (chunks, h). The gradient of the bias is accumulated in memory that no other chunk writes,
    unless it is ATOMIC.
    """
    chunk, head, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    channels = heads * WIDTH
    column = tl.arange(0, BLOCK)
    if ATOMIC:
        grad_bias += head * (STORED * STORED)
    else:
        grad_bias += (chunk * heads + head).to(tl.int64) * (STORED * STORED)
    first_window = chunk * windows_per_chunk
    # Hoisting out of this loop would take registers that the inner loop needs.
    for step in tl.range(0, min(windows - first_window, windows_per_chunk), disable_licm=True):
        number = first_window + step
        window, bias_class, sample = find_window(
            number, sizes, height, width, down, across, WINDOW, SHIFT, SIZED
        )
        first_token = sample.to(tl.int64) * height * width
        source = qkv + first_token * (3 * channels) + head * WIDTH
        upstream = grad + first_token * channels + head * WIDTH
        target = grad_qkv + first_token * (3 * channels) + head * WIDTH
        scores_bias = bias + (bias_class * heads + head) * (STORED * STORED)
        keys, values = load_window(
            source, padding + head * WIDTH, window, column, height, width, channels,
            PIECES, WINDOW, SHIFT, WIDTH, MASKED, PADDED,
        )  # fmt: skip
        key_grads, value_grads = (), ()
        for i in tl.static_range(len(PIECES)):
            key_grads = key_grads + (tl.full([PIECES[i][1], BLOCK], 0.0, ACCUMULATOR),)
            value_grads = value_grads + (tl.full([PIECES[i][1], BLOCK], 0.0, ACCUMULATOR),)
        for start in range(0, WINDOW * WINDOW, ROWS):
            position = start + tl.arange(0, ROWS)
            tokens = find_tokens(position, window, height, width, WINDOW, SHIFT)
            query = load_tokens(source, tokens, column, 3 * channels, WIDTH, MASKED)
            out_grad = load_tokens(upstream, tokens, column, channels, WIDTH, MASKED)
            weights, total = weigh(
                query, keys, scores_bias + start * STORED, PIECES, STORED, SCALE, ACCUMULATOR
            )
            query_grad, key_grads, value_grads = whole_gradients(
                query, out_grad, keys, values, weights, 1.0 / total, key_grads, value_grads,
                grad_bias + start * STORED, PIECES, STORED, ATOMIC, ACCUMULATOR,
            )  # fmt: skip
            query_grad = query_grad * QUERY_SCALE
            store_tokens(target, query_grad, tokens, column, 3 * channels, WIDTH, MASKED, SIZED)
        key_padding, value_padding = tl.zeros([BLOCK], ACCUMULATOR), tl.zeros([BLOCK], ACCUMULATOR)
        for i in tl.static_range(len(PIECES)):
            position = PIECES[i][0] + tl.arange(0, PIECES[i][1])
            tokens = find_tokens(position, window, height, width, WINDOW, SHIFT)
            key_grad, value_grad = key_grads[i] * QUERY_SCALE, value_grads[i]
            key_target = target + channels
            store_tokens(key_target, key_grad, tokens, column, 3 * channels, WIDTH, MASKED, SIZED)
            value_target = target + 2 * channels
            store_tokens(
                value_target, value_grad, tokens, column, 3 * channels, WIDTH, MASKED, SIZED
            )
            if PADDED:
                _index, _valid, _stored, padded = tokens
                padded = padded[:, None]
                key_padding += tl.sum(tl.where(padded, key_grad, 0.0), 0)
                value_padding += tl.sum(tl.where(padded, value_grad, 0.0), 0)
        if PADDED:
            part = number.to(tl.int64) * (2 * channels) + head * WIDTH
            part = grad_padding + part + column
            tl.store(part, key_padding, mask=column < WIDTH)
            tl.store(part + channels, value_padding, mask=column < WIDTH)


@triton.jit
def whole_gradients(
    query, out_grad, keys, values, weights, inverse, key_grads, value_grads, grad_bias,
    PIECES: tl.constexpr, STORED: tl.constexpr, ATOMIC: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Accumulate the gradients of keys, values and bias from ROWS queries.

    Returns:
        The gradient of the queries [ROWS, BLOCK], not scaled, and the tuples of the gradients of
        keys and values, [keys of the piece, BLOCK] each.
    """
    ROWS: tl.constexpr = query.shape[0]
    shares, next_values, next_keys = (), (), ()
    mixed = tl.zeros(query.shape, ACCUMULATOR)
    for i in tl.static_range(len(PIECES)):
        share = weights[i] * inverse[:, None]
        rounded = share.to(query.dtype)
        mixed = tl.dot(rounded, values[i], mixed, input_precision="ieee", out_dtype=ACCUMULATOR)
        value_grad = tl.dot(
            tl.trans(rounded), out_grad, value_grads[i],
            input_precision="ieee", out_dtype=ACCUMULATOR,
        )  # fmt: skip
        shares, next_values = shares + (share,), next_values + (value_grad,)
    # Sum over keys of the weight times its gradient, without a product per pair.
    inner = tl.sum(mixed * out_grad, 1)
    query_grad = tl.zeros(query.shape, ACCUMULATOR)
    for i in tl.static_range(len(PIECES)):
        change = tl.dot(
            out_grad, tl.trans(values[i]), input_precision="ieee", out_dtype=ACCUMULATOR
        )
        score_grad = shares[i] * (change - inner[:, None])
        place = grad_bias + PIECES[i][0] * 16 + pair_offsets(STORED, ROWS, PIECES[i][1], False)
        flat = flatten_pairs(score_grad, ROWS, PIECES[i][1], False)
        if ATOMIC:
            tl.atomic_add(place, flat, sem="relaxed")
        else:
            tl.store(place, tl.load(place) + flat)
        rounded = score_grad.to(query.dtype)
        key_grad = tl.dot(
            tl.trans(rounded), query, key_grads[i], input_precision="ieee", out_dtype=ACCUMULATOR
        )
        next_keys = next_keys + (key_grad,)
        query_grad = tl.dot(
            rounded, keys[i], query_grad, input_precision="ieee", out_dtype=ACCUMULATOR
        )
    return query_grad, next_keys, next_values
