"""Backward kernels of cross attention.

`walk_keys` keeps a tile of queries and loops over the keys, `walk_queries` keeps a tile of keys and
loops over the queries. If one tile holds a whole sequence, the gradient of the other sequence is
complete in every step, and one kernel writes all gradients. There are no atomics.

Letters and the order of keys are those of `triton_forward.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_forward import (
    LOG2_E,
    _any_place,
    _dropout_scale,
    _dropout_words,
    _hide,
    _is_read,
    _kept,
    _load_rows,
    _own_keys,
    _place,
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
    lengths,  # [B] number of keys of each sample, or None
    valid_sizes,  # [B, 2] height and width of each sample's own map of keys, or None
    key_mask,  # [B, m] uint8, or None
    seed,  # [1] int64, or None without dropout
    deltas,  # [B, h, n] output for `walk_queries`, or None
    grad_queries,  # [S, B, n, h, d] output, to be summed over S
    grad_keys,  # [B, m, h, d] output, or None; needs one tile of queries
    grad_values,  # [B, m, h, d] output, or None; needs one tile of queries
    q_sample, q_token, q_head, k_sample, k_token, k_head,
    v_sample, v_token, v_head, grad_sample, grad_token, grad_head,
    num_queries, num_keys, num_heads, keys_per_part, map_height, map_width, threshold,
    HEAD_WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr, BLOCK_MASK: tl.constexpr, SPLIT: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of one tile of queries from one part of the keys.

    Grid: (query tiles * S, h, B). Outputs are contiguous.
    """
    FACTOR: tl.constexpr = 1 / HEAD_WIDTH**0.5
    SCALE: tl.constexpr = LOG2_E / HEAD_WIDTH**0.5
    head, sample = tl.program_id(1), tl.program_id(2)
    tile, part = _tile_and_part(num_queries, BLOCK_QUERIES, SPLIT)
    query = tile * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    asks = query < num_queries
    far = sample.to(tl.int64)
    wide = num_heads * HEAD_WIDTH
    q = _load_rows(
        queries + far * q_sample + head * q_head, query, q_token, asks, HEAD_WIDTH, BLOCK_WIDTH
    )
    grad = _load_rows(
        grads + far * grad_sample + head * grad_head,
        query,
        grad_token,
        asks,
        HEAD_WIDTH,
        BLOCK_WIDTH,
    )
    out = _load_rows(
        outputs + far * num_queries * wide + head * HEAD_WIDTH,
        query,
        wide,
        asks,
        HEAD_WIDTH,
        BLOCK_WIDTH,
    )
    keys += far * k_sample + head * k_head
    values += far * v_sample + head * v_head
    rescale = _dropout_scale(seed, threshold, ACCUMULATOR)
    # The factor of dropout is applied once, at the end.
    delta = tl.sum(grad.to(ACCUMULATOR) * out.to(ACCUMULATOR), 1) / rescale
    row = (far * num_heads + head) * num_queries + query
    # The weights of absent queries become 0.
    log_total = tl.load(logsumexps + row, mask=asks, other=float("inf"))
    if key_mask is not None:
        # A sample without keys.
        log_total = tl.where(log_total == float("-inf"), float("inf"), log_total)
    if deltas is not None:
        # All parts have the same delta; the first one stores it.
        tl.store(deltas + row, delta, mask=query < tl.where(part == 0, num_queries, 0))
    count, own_width = _own_keys(
        lengths, valid_sizes, key_mask, sample, num_keys, map_height, map_width, BLOCK_MASK
    )
    base, stir = _dropout_words(seed, sample, head)
    factor = rescale * FACTOR
    if grad_keys is not None:
        grad_keys += far * num_keys * wide + head * HEAD_WIDTH
        grad_values += far * num_keys * wide + head * HEAD_WIDTH

    grad_q = tl.zeros([BLOCK_QUERIES, BLOCK_WIDTH], ACCUMULATOR)
    start = part * keys_per_part
    stop = tl.minimum(start + keys_per_part, count)
    for first in range(start, stop, BLOCK_KEYS):
        rank = first + tl.arange(0, BLOCK_KEYS)
        own = _is_read(rank, stop, key_mask, sample, num_keys)
        place = _place(rank, own_width, map_width, valid_sizes)
        k = _load_rows(keys, place, k_token, own, HEAD_WIDTH, BLOCK_WIDTH)
        v = _load_rows(values, place, v_token, own, HEAD_WIDTH, BLOCK_WIDTH)
        scores = tl.dot(q, tl.trans(k), out_dtype=ACCUMULATOR, input_precision="ieee")
        scores = _hide(scores, own[None, :], key_mask)
        weights = tl.exp2(scores * SCALE - log_total[:, None])
        slopes = tl.dot(grad, tl.trans(v), out_dtype=ACCUMULATOR, input_precision="ieee")
        left = weights
        if seed is not None:
            kept = _kept(query[:, None], rank[None, :], base, stir, threshold)
            slopes = tl.where(kept, slopes, 0.0)
            left = tl.where(kept, weights, 0.0)
        grad_scores = (weights * (slopes - delta[:, None])).to(k.dtype)
        grad_q += tl.dot(grad_scores, k, out_dtype=ACCUMULATOR, input_precision="ieee")
        if grad_keys is not None:
            anywhere = _any_place(rank, count, own_width, map_width, valid_sizes)
            exists = rank < num_keys
            grad_k = tl.dot(tl.trans(grad_scores), q, out_dtype=ACCUMULATOR, input_precision="ieee")
            grad_v = tl.dot(
                tl.trans(left.to(grad.dtype)), grad, out_dtype=ACCUMULATOR, input_precision="ieee"
            )
            _store_rows(grad_keys, anywhere, wide, exists, grad_k * factor, HEAD_WIDTH, BLOCK_WIDTH)
            _store_rows(
                grad_values, anywhere, wide, exists, grad_v * rescale, HEAD_WIDTH, BLOCK_WIDTH
            )
    if grad_keys is not None:
        nothing = tl.zeros([BLOCK_KEYS, BLOCK_WIDTH], ACCUMULATOR)
        behind = start + tl.cdiv(tl.maximum(stop - start, 0), BLOCK_KEYS) * BLOCK_KEYS
        for first in range(behind, tl.minimum(start + keys_per_part, num_keys), BLOCK_KEYS):
            rank = first + tl.arange(0, BLOCK_KEYS)
            anywhere = _any_place(rank, count, own_width, map_width, valid_sizes)
            exists = rank < num_keys
            _store_rows(grad_keys, anywhere, wide, exists, nothing, HEAD_WIDTH, BLOCK_WIDTH)
            _store_rows(grad_values, anywhere, wide, exists, nothing, HEAD_WIDTH, BLOCK_WIDTH)
    far += part * tl.num_programs(2)
    grad_queries += far * num_queries * wide + head * HEAD_WIDTH
    _store_rows(grad_queries, query, wide, asks, grad_q * factor, HEAD_WIDTH, BLOCK_WIDTH)


@triton.jit
def walk_queries(
    queries,  # [B, n, h, d]
    keys,  # [B, m, h, d]
    values,  # [B, m, h, d]
    grads,  # [B, n, h, d] gradient of the output
    logsumexps,  # [B, h, n] contiguous
    lengths,  # [B] number of keys of each sample, or None
    valid_sizes,  # [B, 2] height and width of each sample's own map of keys, or None
    key_mask,  # [B, m] uint8, or None
    seed,  # [1] int64, or None without dropout
    deltas,  # [B, h, n] from `walk_keys`; None needs one tile of keys
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
    """Compute the gradients of one tile of keys and values from one part of the queries.

    Grid: (key tiles * S, h, B). Gradients of keys that are not read are 0. Outputs are contiguous.
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
    own = _is_read(rank, count, key_mask, sample, num_keys)
    place = _any_place(rank, count, own_width, map_width, valid_sizes)
    far = sample.to(tl.int64)
    wide = num_heads * HEAD_WIDTH
    k = _load_rows(
        keys + far * k_sample + head * k_head, place, k_token, own, HEAD_WIDTH, BLOCK_WIDTH
    )
    v = _load_rows(
        values + far * v_sample + head * v_head, place, v_token, own, HEAD_WIDTH, BLOCK_WIDTH
    )
    queries += far * q_sample + head * q_head
    grads += far * grad_sample + head * grad_head
    logsumexps += (far * num_heads + head) * num_queries
    rescale = _dropout_scale(seed, threshold, ACCUMULATOR)
    base, stir = _dropout_words(seed, sample, head)
    factor = rescale * FACTOR
    start = part * queries_per_part
    stop = tl.minimum(start + queries_per_part, num_queries)
    if deltas is not None:
        deltas += (far * num_heads + head) * num_queries
        # Keys after a sample's own ones are not read.
        stop = tl.where(first_key < count, stop, start)
    else:
        grad_queries += far * num_queries * wide + head * HEAD_WIDTH

    grad_k = tl.zeros([BLOCK_KEYS, BLOCK_WIDTH], ACCUMULATOR)
    grad_v = tl.zeros([BLOCK_KEYS, BLOCK_WIDTH], ACCUMULATOR)
    for first in range(start, stop, BLOCK_QUERIES):
        query = first + tl.arange(0, BLOCK_QUERIES)
        asks = query < stop
        q = _load_rows(queries, query, q_token, asks, HEAD_WIDTH, BLOCK_WIDTH)
        grad = _load_rows(grads, query, grad_token, asks, HEAD_WIDTH, BLOCK_WIDTH)
        log_total = tl.load(logsumexps + query, mask=asks, other=float("inf"))
        if deltas is None:
            # A sample without keys.
            log_total = tl.where(log_total == float("-inf"), float("inf"), log_total)
        scores = tl.dot(k, tl.trans(q), out_dtype=ACCUMULATOR, input_precision="ieee")
        scores = _hide(scores, own[:, None], key_mask)
        weights = tl.exp2(scores * SCALE - log_total[None, :])
        slopes = tl.dot(v, tl.trans(grad), out_dtype=ACCUMULATOR, input_precision="ieee")
        left = weights
        if seed is not None:
            kept = _kept(query[None, :], rank[:, None], base, stir, threshold)
            slopes = tl.where(kept, slopes, 0.0)
            left = tl.where(kept, weights, 0.0)
        grad_v += tl.dot(left.to(grad.dtype), grad, out_dtype=ACCUMULATOR, input_precision="ieee")
        if deltas is None:
            delta = tl.sum(weights * slopes, 0)
        else:
            delta = tl.load(deltas + query, mask=asks, other=0.0)
        grad_scores = (weights * (slopes - tl.expand_dims(delta, 0))).to(q.dtype)
        grad_k += tl.dot(grad_scores, q, out_dtype=ACCUMULATOR, input_precision="ieee")
        if deltas is None:
            grad_q = tl.dot(tl.trans(grad_scores), k, out_dtype=ACCUMULATOR, input_precision="ieee")
            _store_rows(grad_queries, query, wide, asks, grad_q * factor, HEAD_WIDTH, BLOCK_WIDTH)
    far += part * tl.num_programs(2)
    target = far * num_keys * wide + head * HEAD_WIDTH
    exists = rank < num_keys
    _store_rows(grad_keys + target, place, wide, exists, grad_k * factor, HEAD_WIDTH, BLOCK_WIDTH)
    _store_rows(
        grad_values + target, place, wide, exists, grad_v * rescale, HEAD_WIDTH, BLOCK_WIDTH
    )


@triton.jit
def add_parts(parts, sums, size, num_parts, BLOCK_SIZE: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """Sum `parts` [S, size] into `sums` [size], in the order of S."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = offsets < size
    total = tl.zeros([BLOCK_SIZE], ACCUMULATOR)
    for _ in range(num_parts):
        total += tl.load(parts + offsets, mask=mask, other=0.0)
        parts += size
    tl.store(sums + offsets, total.to(sums.dtype.element_ty), mask=mask)
