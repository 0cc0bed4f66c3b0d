"""Window attention kernels that keep the scores of queries against all keys in registers.

Scores are a tuple of tiles. `PIECES` lists the (first key, number of keys) of each tile. The 144
keys of a 12 x 12 window are split into tiles of 128 and 16 keys; a single tile would need 256. The
bias is loaded before the product that it is added to, so that the compiler keeps the product's
layout afterwards.

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
)


@triton.jit
def load_window(
    source, padding, window, column, height, width, channels, PIECES: tl.constexpr,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    """Load all keys and values of a window as two tuples of [keys of the piece, BLOCK] tiles."""
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
def exp_scores(
    query, keys, bias, PIECES: tl.constexpr, STORED: tl.constexpr, SCALE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Compute the exponentials of scores minus their maximum.

    Returns:
        A tuple of [ROWS, keys of the piece] exponentials, and their sum [ROWS].
    """
    ROWS: tl.constexpr = query.shape[0]
    scores = ()
    maximum = tl.full([ROWS], float("-inf"), ACCUMULATOR)
    for i in tl.static_range(len(PIECES)):
        offset = load_pairs(bias + PIECES[i][0] * 16, STORED, ROWS, PIECES[i][1], False)
        score = dot(query, tl.trans(keys[i]), ACCUMULATOR)
        # Scaling and bias take a single multiply-add.
        score = score * SCALE + offset
        maximum = tl.maximum(maximum, tl.max(score, 1))
        scores = scores + (score,)
    weights = ()
    total = tl.zeros([ROWS], ACCUMULATOR)
    for i in tl.static_range(len(PIECES)):
        weight = tl.exp2(scores[i] - maximum[:, None])
        total += tl.sum(weight, 1)
        weights = weights + (weight,)
    return weights, total


@triton.jit
def whole_forward(
    qkv,  # [B, H, W, 3, h, d] input
    bias,  # [classes, h, S * S] expanded bias in base 2, in the order of `pair_offsets`
    padding,  # [3, h, d] query, key and value at padded positions
    sizes,  # [B, 2] height and width of each sample's valid region, or None
    out,  # [B, H, W, h, d] output
    height, width,  # H, W
    down, across,  # windows along H and W
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    PIECES: tl.constexpr, STORED: tl.constexpr, ROWS: tl.constexpr, QUERIES: tl.constexpr,
    SCALE: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr, SIZED: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Compute the output of QUERIES queries of a window, ROWS at a time.

    Grid: (B nW, h, groups of QUERIES queries).
    """
    head, heads = tl.program_id(1), tl.num_programs(1)
    window, bias_class, first_token = find_window(
        tl.program_id(0), sizes, height, width, down, across, WINDOW, SHIFT, SIZED
    )
    channels = heads * WIDTH
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
        weights, total = exp_scores(
            query, keys, bias + start * STORED, PIECES, STORED, SCALE, ACCUMULATOR
        )
        attended = tl.zeros([ROWS, BLOCK], ACCUMULATOR)
        for i in tl.static_range(len(PIECES)):
            attended = dot(weights[i].to(query.dtype), values[i], ACCUMULATOR, attended)
        attended = attended * (1.0 / total)[:, None]
        store_tokens(target, attended, tokens, column, channels, WIDTH, MASKED, SIZED)


@triton.jit
def whole_backward(
    qkv,  # [B, H, W, 3, h, d] input
    grad,  # [B, H, W, h, d] gradient of the output
    bias,  # [classes, h, S * S] expanded bias in base 2, in the order of `pair_offsets`
    padding,  # [3, h, d] query, key and value at padded positions
    sizes,  # [B, 2] height and width of each sample's valid region, or None
    grad_qkv,  # [B, H, W, 3, h, d] output
    grad_bias,  # [chunks, h, S * S] output, initially 0; [1, h, S * S] if ATOMIC
    grad_padding,  # [B nW, 2, h, d] output: keys and values at padded positions
    height, width,  # H, W
    down, across,  # windows along H and W
    windows,  # B nW
    windows_per_chunk,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    PIECES: tl.constexpr, STORED: tl.constexpr, ROWS: tl.constexpr, SCALE: tl.constexpr,
    QUERY_SCALE: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr, SIZED: tl.constexpr,
    ATOMIC: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Compute all gradients of a chunk of windows, ROWS queries at a time.

    Grid: (chunks, h). Each chunk accumulates the bias gradient in its own memory, unless ATOMIC.
    """
    chunk, head, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    channels = heads * WIDTH
    column = tl.arange(0, BLOCK)
    if ATOMIC:
        grad_bias += head * (STORED * STORED)
    else:
        grad_bias += (chunk * heads + head).to(tl.int64) * (STORED * STORED)
    first_window = chunk * windows_per_chunk
    # Hoisting this out of the loop would use registers that the inner loop needs.
    for step in tl.range(0, min(windows - first_window, windows_per_chunk), disable_licm=True):
        window_index = first_window + step
        window, bias_class, first_token = find_window(
            window_index, sizes, height, width, down, across, WINDOW, SHIFT, SIZED
        )
        source = qkv + first_token * (3 * channels) + head * WIDTH
        grads = grad + first_token * channels + head * WIDTH
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
            out_grad = load_tokens(grads, tokens, column, channels, WIDTH, MASKED)
            weights, total = exp_scores(
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
            part = window_index.to(tl.int64) * (2 * channels) + head * WIDTH
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
        The unscaled gradient of the queries [ROWS, BLOCK], and two tuples with the accumulated
        gradients of keys and values, [keys of the piece, BLOCK] per tile.
    """
    ROWS: tl.constexpr = query.shape[0]
    normalized, next_values, next_keys = (), (), ()
    attended = tl.zeros(query.shape, ACCUMULATOR)
    for i in tl.static_range(len(PIECES)):
        weight = weights[i] * inverse[:, None]
        rounded = weight.to(query.dtype)
        attended = dot(rounded, values[i], ACCUMULATOR, attended)
        value_grad = dot(tl.trans(rounded), out_grad, ACCUMULATOR, value_grads[i])
        normalized, next_values = normalized + (weight,), next_values + (value_grad,)
    # Sum over keys of weights times their gradients, computed from the output.
    delta = tl.sum(attended * out_grad, 1)
    query_grad = tl.zeros(query.shape, ACCUMULATOR)
    for i in tl.static_range(len(PIECES)):
        grad_weight = dot(out_grad, tl.trans(values[i]), ACCUMULATOR)
        score_grad = normalized[i] * (grad_weight - delta[:, None])
        place = grad_bias + PIECES[i][0] * 16 + pair_offsets(STORED, ROWS, PIECES[i][1], False)
        flat = flatten_pairs(score_grad, ROWS, PIECES[i][1], False)
        if ATOMIC:
            tl.atomic_add(place, flat, sem="relaxed")
        else:
            tl.store(place, tl.load(place) + flat)
        rounded = score_grad.to(query.dtype)
        key_grad = dot(tl.trans(rounded), query, ACCUMULATOR, key_grads[i])
        next_keys = next_keys + (key_grad,)
        query_grad = dot(rounded, keys[i], ACCUMULATOR, query_grad)
    return query_grad, next_keys, next_values
