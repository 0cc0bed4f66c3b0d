"""Backward kernels of cross-attention.

`walk_keys` holds a tile of queries and loops over keys. `walk_queries` holds a tile of keys and
loops over queries. If a tile covers its whole sequence, every step computes the complete gradient
of a tile of the other sequence, so one kernel writes all gradients. No atomics are used.

Notation and key ranks are as in `triton_forward.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..runtime.triton_math import dot
from .triton_forward import (
    LOG2_E,
    _any_position,
    _dropout_scale,
    _dropout_seeds,
    _is_read,
    _kept,
    _load_rows,
    _mask_scores,
    _own_keys,
    _position,
    _store_rows,
    _tile_and_part,
)


@triton.jit
def walk_keys(
    queries,  # [B, n, h, d]
    keys,  # [B, m, h, d]
    values,  # [B, m, h, d]
    grads,  # [B, n, h, d] gradient of the output
    outputs,  # [B, n, h, d] contiguous
    logsumexps,  # [B, h, n] contiguous
    lengths,  # [B] number of keys per sample, or None
    valid_sizes,  # [B, 2] height and width of each sample's valid region, or None
    key_mask,  # [B, m] uint8, or None
    seed,  # [1] int64, or None without dropout
    deltas,  # [B, h, n] output for `walk_queries`, or None
    grad_queries,  # [S, B, n, h, d] output, to be summed over S
    grad_keys,  # [B, m, h, d] output, or None; requires a single tile of queries
    grad_values,  # [B, m, h, d] output, or None; requires a single tile of queries
    q_sample, q_token, q_head, k_sample, k_token, k_head,
    v_sample, v_token, v_head, grad_sample, grad_token, grad_head,
    num_queries, num_keys, num_heads, keys_per_part, map_height, map_width, threshold,
    HEAD_WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr, BLOCK_MASK: tl.constexpr, SPLIT: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a tile of queries over one part of the keys.

    Grid: (query tiles * S, h, B). Outputs are contiguous.
    """
    FACTOR: tl.constexpr = 1 / HEAD_WIDTH**0.5
    SCALE: tl.constexpr = LOG2_E / HEAD_WIDTH**0.5
    head, sample = tl.program_id(1), tl.program_id(2)
    tile, part = _tile_and_part(num_queries, BLOCK_QUERIES, SPLIT)
    query = tile * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    valid = query < num_queries
    index = sample.to(tl.int64)
    stride = num_heads * HEAD_WIDTH
    queries = queries + index * q_sample + head * q_head
    q = _load_rows(queries, query, q_token, valid, HEAD_WIDTH, BLOCK_WIDTH)
    grads = grads + index * grad_sample + head * grad_head
    grad = _load_rows(grads, query, grad_token, valid, HEAD_WIDTH, BLOCK_WIDTH)
    outputs = outputs + index * num_queries * stride + head * HEAD_WIDTH
    out = _load_rows(outputs, query, stride, valid, HEAD_WIDTH, BLOCK_WIDTH)
    keys += index * k_sample + head * k_head
    values += index * v_sample + head * v_head
    scale = _dropout_scale(seed, threshold, ACCUMULATOR)
    # The dropout scale is applied once, at the end.
    delta = tl.sum(grad.to(ACCUMULATOR) * out.to(ACCUMULATOR), 1) / scale
    row = (index * num_heads + head) * num_queries + query
    # Weights of out-of-range queries become 0.
    log_total = tl.load(logsumexps + row, mask=valid, other=float("inf"))
    if key_mask is not None:
        # The logsumexp is -inf if the sample has no keys.
        log_total = tl.where(log_total == float("-inf"), float("inf"), log_total)
    if deltas is not None:
        # All parts have the same delta, so only the first one stores it.
        tl.store(deltas + row, delta, mask=query < tl.where(part == 0, num_queries, 0))
    count, own_width = _own_keys(
        lengths, valid_sizes, key_mask, sample, num_keys, map_height, map_width, BLOCK_MASK
    )
    base, mix = _dropout_seeds(seed, sample, head)
    q_scale = scale * FACTOR
    if grad_keys is not None:
        grad_keys += index * num_keys * stride + head * HEAD_WIDTH
        grad_values += index * num_keys * stride + head * HEAD_WIDTH

    grad_q = tl.zeros([BLOCK_QUERIES, BLOCK_WIDTH], ACCUMULATOR)
    start = part * keys_per_part
    stop = tl.minimum(start + keys_per_part, count)
    for first in range(start, stop, BLOCK_KEYS):
        rank = first + tl.arange(0, BLOCK_KEYS)
        is_read = _is_read(rank, stop, key_mask, sample, num_keys)
        position = _position(rank, own_width, map_width, valid_sizes)
        k = _load_rows(keys, position, k_token, is_read, HEAD_WIDTH, BLOCK_WIDTH)
        v = _load_rows(values, position, v_token, is_read, HEAD_WIDTH, BLOCK_WIDTH)
        scores = dot(q, tl.trans(k), ACCUMULATOR)
        scores = _mask_scores(scores, is_read[None, :], key_mask)
        weights = tl.exp2(scores * SCALE - log_total[:, None])
        grad_weights = dot(grad, tl.trans(v), ACCUMULATOR)
        kept_weights = weights
        if seed is not None:
            kept = _kept(query[:, None], rank[None, :], base, mix, threshold)
            grad_weights = tl.where(kept, grad_weights, 0.0)
            kept_weights = tl.where(kept, weights, 0.0)
        grad_scores = (weights * (grad_weights - delta[:, None])).to(k.dtype)
        grad_q += dot(grad_scores, k, ACCUMULATOR)
        if grad_keys is not None:
            target = _any_position(rank, count, own_width, map_width, valid_sizes)
            exists = rank < num_keys
            grad_k = dot(tl.trans(grad_scores), q, ACCUMULATOR)
            grad_v = dot(tl.trans(kept_weights.to(grad.dtype)), grad, ACCUMULATOR)
            _store_rows(
                grad_keys, target, stride, exists, grad_k * q_scale, HEAD_WIDTH, BLOCK_WIDTH
            )
            _store_rows(
                grad_values, target, stride, exists, grad_v * scale, HEAD_WIDTH, BLOCK_WIDTH
            )
    if grad_keys is not None:
        zeros = tl.zeros([BLOCK_KEYS, BLOCK_WIDTH], ACCUMULATOR)
        rest = start + tl.cdiv(tl.maximum(stop - start, 0), BLOCK_KEYS) * BLOCK_KEYS
        for first in range(rest, tl.minimum(start + keys_per_part, num_keys), BLOCK_KEYS):
            rank = first + tl.arange(0, BLOCK_KEYS)
            target = _any_position(rank, count, own_width, map_width, valid_sizes)
            exists = rank < num_keys
            _store_rows(grad_keys, target, stride, exists, zeros, HEAD_WIDTH, BLOCK_WIDTH)
            _store_rows(grad_values, target, stride, exists, zeros, HEAD_WIDTH, BLOCK_WIDTH)
    index += part * tl.num_programs(2)
    grad_queries += index * num_queries * stride + head * HEAD_WIDTH
    _store_rows(grad_queries, query, stride, valid, grad_q * q_scale, HEAD_WIDTH, BLOCK_WIDTH)


@triton.jit
def walk_queries(
    queries,  # [B, n, h, d]
    keys,  # [B, m, h, d]
    values,  # [B, m, h, d]
    grads,  # [B, n, h, d] gradient of the output
    logsumexps,  # [B, h, n] contiguous
    lengths,  # [B] number of keys per sample, or None
    valid_sizes,  # [B, 2] height and width of each sample's valid region, or None
    key_mask,  # [B, m] uint8, or None
    seed,  # [1] int64, or None without dropout
    deltas,  # [B, h, n] from `walk_keys`; None requires a single tile of keys
    grad_queries,  # [B, n, h, d] output if deltas is None
    grad_keys,  # [S, B, m, h, d] output, to be summed over S
    grad_values,  # [S, B, m, h, d] output, to be summed over S
    q_sample, q_token, q_head, k_sample, k_token, k_head,
    v_sample, v_token, v_head, grad_sample, grad_token, grad_head,
    num_queries, num_keys, num_heads, queries_per_part, map_height, map_width, threshold,
    HEAD_WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr, BLOCK_MASK: tl.constexpr, SPLIT: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a tile of keys and values over one part of the queries.

    Grid: (key tiles * S, h, B). Gradients of masked keys are 0. Outputs are contiguous.
    """
    FACTOR: tl.constexpr = 1 / HEAD_WIDTH**0.5
    SCALE: tl.constexpr = LOG2_E / HEAD_WIDTH**0.5
    head, sample = tl.program_id(1), tl.program_id(2)
    tile, part = _tile_and_part(num_keys, BLOCK_KEYS, SPLIT)
    first_key = tile * BLOCK_KEYS
    rank = first_key + tl.arange(0, BLOCK_KEYS)
    count, own_width = _own_keys(
        lengths, valid_sizes, key_mask, sample, num_keys, map_height, map_width, BLOCK_MASK
    )
    is_read = _is_read(rank, count, key_mask, sample, num_keys)
    position = _any_position(rank, count, own_width, map_width, valid_sizes)
    index = sample.to(tl.int64)
    stride = num_heads * HEAD_WIDTH
    keys = keys + index * k_sample + head * k_head
    k = _load_rows(keys, position, k_token, is_read, HEAD_WIDTH, BLOCK_WIDTH)
    values = values + index * v_sample + head * v_head
    v = _load_rows(values, position, v_token, is_read, HEAD_WIDTH, BLOCK_WIDTH)
    queries += index * q_sample + head * q_head
    grads += index * grad_sample + head * grad_head
    logsumexps += (index * num_heads + head) * num_queries
    scale = _dropout_scale(seed, threshold, ACCUMULATOR)
    base, mix = _dropout_seeds(seed, sample, head)
    q_scale = scale * FACTOR
    start = part * queries_per_part
    stop = tl.minimum(start + queries_per_part, num_queries)
    if deltas is not None:
        deltas += (index * num_heads + head) * num_queries
        # Skip tiles past the sample's valid keys.
        stop = tl.where(first_key < count, stop, start)
    else:
        grad_queries += index * num_queries * stride + head * HEAD_WIDTH

    grad_k = tl.zeros([BLOCK_KEYS, BLOCK_WIDTH], ACCUMULATOR)
    grad_v = tl.zeros([BLOCK_KEYS, BLOCK_WIDTH], ACCUMULATOR)
    for first in range(start, stop, BLOCK_QUERIES):
        query = first + tl.arange(0, BLOCK_QUERIES)
        valid = query < stop
        q = _load_rows(queries, query, q_token, valid, HEAD_WIDTH, BLOCK_WIDTH)
        grad = _load_rows(grads, query, grad_token, valid, HEAD_WIDTH, BLOCK_WIDTH)
        log_total = tl.load(logsumexps + query, mask=valid, other=float("inf"))
        if deltas is None:
            # The logsumexp is -inf if the sample has no keys.
            log_total = tl.where(log_total == float("-inf"), float("inf"), log_total)
        scores = dot(k, tl.trans(q), ACCUMULATOR)
        scores = _mask_scores(scores, is_read[:, None], key_mask)
        weights = tl.exp2(scores * SCALE - log_total[None, :])
        grad_weights = dot(v, tl.trans(grad), ACCUMULATOR)
        kept_weights = weights
        if seed is not None:
            kept = _kept(query[None, :], rank[:, None], base, mix, threshold)
            grad_weights = tl.where(kept, grad_weights, 0.0)
            kept_weights = tl.where(kept, weights, 0.0)
        grad_v += dot(kept_weights.to(grad.dtype), grad, ACCUMULATOR)
        if deltas is None:
            delta = tl.sum(weights * grad_weights, 0)
        else:
            delta = tl.load(deltas + query, mask=valid, other=0.0)
        grad_scores = (weights * (grad_weights - tl.expand_dims(delta, 0))).to(q.dtype)
        grad_k += dot(grad_scores, q, ACCUMULATOR)
        if deltas is None:
            grad_q = dot(tl.trans(grad_scores), k, ACCUMULATOR)
            _store_rows(
                grad_queries, query, stride, valid, grad_q * q_scale, HEAD_WIDTH, BLOCK_WIDTH
            )
    index += part * tl.num_programs(2)
    offset = index * num_keys * stride + head * HEAD_WIDTH
    exists = rank < num_keys
    _store_rows(
        grad_keys + offset, position, stride, exists, grad_k * q_scale, HEAD_WIDTH, BLOCK_WIDTH
    )
    _store_rows(
        grad_values + offset, position, stride, exists, grad_v * scale, HEAD_WIDTH, BLOCK_WIDTH
    )


@triton.jit
def add_parts(parts, sums, size, num_parts, BLOCK_SIZE: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """Sum `parts` [S, size] into `sums` [size], in order."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = offsets < size
    total = tl.zeros([BLOCK_SIZE], ACCUMULATOR)
    for _ in range(num_parts):
        total += tl.load(parts + offsets, mask=mask, other=0.0)
        parts += size
    tl.store(sums + offsets, total.to(sums.dtype.element_ty), mask=mask)
