"""Forward kernels of cross attention, and device functions that the backward kernels share.

Letters: B batch, n queries, m keys, h heads, d head width, S parts of a split loop.

A program handles one head of one sample. Loops go over the rank of a key: a sample's own keys come
first, that is, real tokens, or the positions of its own map row by row. Other keys are never
loaded, so they may hold anything and cost nothing.

Source: Dao, "FlashAttention-2" (2023): the running softmax and its backward from the logsumexp.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _own_keys(
    lengths, valid_sizes, key_mask, sample, num_keys, map_height, map_width,
    BLOCK_MASK: tl.constexpr,
):  # fmt: skip
    """Return the number of keys of a sample, and the width of its own map, at least 1.

    With a mask, the number of keys is the position of the last selected one plus 1.
    """
    count = num_keys
    own_width = 1
    if lengths is not None:
        length = tl.load(lengths + sample)
        count = tl.minimum(tl.maximum(length, 0), num_keys).to(tl.int32)
    if valid_sizes is not None:
        height = tl.load(valid_sizes + 2 * sample)
        width = tl.load(valid_sizes + 2 * sample + 1)
        height = tl.minimum(tl.maximum(height, 0), map_height).to(tl.int32)
        width = tl.minimum(tl.maximum(width, 0), map_width).to(tl.int32)
        count = height * width
        own_width = tl.maximum(width, 1)
    if key_mask is not None:
        position = tl.arange(0, BLOCK_MASK)
        marks = key_mask + sample.to(tl.int64) * num_keys + position
        marked = tl.load(marks, mask=position < num_keys, other=0) != 0
        count = tl.max(tl.where(marked, position + 1, 0), 0)
    return count, own_width


@triton.jit
def _is_read(rank, below, key_mask, sample, num_keys):
    """Check whether the key of a rank is below a bound and selected by the mask, if any."""
    own = rank < below
    if key_mask is not None:
        marks = key_mask + sample.to(tl.int64) * num_keys + rank
        own = own & (tl.load(marks, mask=own, other=0) != 0)
    return own


@triton.jit
def _tile_and_part(length, BLOCK: tl.constexpr, SPLIT: tl.constexpr):
    """Return this program's tile of one sequence and its part of the loop over the other one."""
    if SPLIT:
        tiles = tl.cdiv(length, BLOCK)
        return tl.program_id(0) % tiles, tl.program_id(0) // tiles
    else:
        return tl.program_id(0), 0


@triton.jit
def _place(rank, own_width, map_width, valid_sizes):
    """Return the position in the tensor of the own key of a rank."""
    if valid_sizes is None:
        return rank
    else:
        return rank // own_width * map_width + rank % own_width


@triton.jit
def _any_place(rank, count, own_width, map_width, valid_sizes):
    """Return the position of every rank below m: after the own keys, each other key once."""
    if valid_sizes is None:
        return rank
    else:
        own_height = count // own_width
        # `beside` columns are to the right of the own map; 0 if the sample has no keys.
        beside = tl.where(count > 0, map_width - own_width, 0)
        other = rank - count
        divisor = tl.maximum(beside, 1)
        right = other // divisor * map_width + own_width + other % divisor
        inside = _place(rank, own_width, map_width, valid_sizes)
        return tl.where(rank < count, inside, tl.where(other < own_height * beside, right, rank))


@triton.jit
def _load_rows(pointer, rows, stride, present, HEAD_WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Load [rows, BLOCK_WIDTH] of one head; 0 where a row is not `present`."""
    columns = tl.arange(0, BLOCK_WIDTH)
    mask = present[:, None]
    if HEAD_WIDTH != BLOCK_WIDTH:
        mask = mask & (columns < HEAD_WIDTH)[None, :]
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _store_rows(
    pointer, rows, stride, present, tile, HEAD_WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr
):
    """Store [rows, BLOCK_WIDTH] of one head where a row is `present`."""
    columns = tl.arange(0, BLOCK_WIDTH)
    mask = present[:, None]
    if HEAD_WIDTH != BLOCK_WIDTH:
        mask = mask & (columns < HEAD_WIDTH)[None, :]
    pointers = pointer + rows[:, None] * stride + columns[None, :]
    tl.store(pointers, tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _dropout_words(seed, sample, head):
    """Draw two random integers for a head of a sample; zeros without dropout."""
    if seed is None:
        return 0, 0
    else:
        base, stir, _, _ = tl.philox(tl.load(seed), sample, head, 0, 0)
        return base, stir


@triton.jit
def _kept(query, key, base, stir, threshold):
    """Decide which weights dropout keeps, from the indices of query and key alone.

    Philox for every weight would cost several times the attention. It is called once per head; its
    output keys a hash of two multiplications, which is a bijection of the integer that a
    (query, key) pair is mapped to. So the mask depends on no tile, split or direction.

    Args:
        query: int32 indices, broadcast against `key`.
        key: int32 ranks.
        base: random integer added before the hash.
        stir: random integer mixed in between its multiplications.
        threshold: int32; a weight is kept with probability (2^31 - threshold) / 2^32.

    Returns:
        bool of the broadcast shape.
    """
    # Odd multipliers without collisions among the first 4800 queries and 4800 keys.
    row = base + query.to(tl.uint32) * 0x9E3779B1
    word = row + key.to(tl.uint32) * 0x85EBCA6B
    word = (word ^ (word >> 16)) * 0x21F0AAAD
    word = (word ^ (word >> 15) ^ stir) * 0x735A2D97
    return word.to(tl.int32, bitcast=True) >= threshold


@triton.jit
def _dropout_scale(seed, threshold, ACCUMULATOR: tl.constexpr):
    """Return 1 over the probability of keeping a weight."""
    if seed is None:
        return tl.full([], 1.0, ACCUMULATOR)
    else:
        return 4294967296.0 / (2147483648.0 - threshold.to(ACCUMULATOR))


@triton.jit
def _hide(scores, own, key_mask):
    """Set the scores of keys that are not read to -inf; `own` is broadcast against scores."""
    if key_mask is None:
        return tl.where(own, scores, float("-inf"))
    else:
        # `own` was loaded from memory: an addition per score is cheaper than a select.
        return scores + tl.where(own, 0.0, float("-inf"))


@triton.jit
def attend(
    queries,  # [B, n, h, d]
    keys,  # [B, m, h, d]
    values,  # [B, m, h, d]
    lengths,  # [B] number of keys of each sample, or None
    valid_sizes,  # [B, 2] height and width of each sample's own map of keys, or None
    key_mask,  # [B, m] uint8, or None
    seed,  # [1] int64, or None without dropout
    outputs,  # [S, B, n, h, d] contiguous
    logsumexps,  # [S, B, h, n] contiguous
    q_sample, q_token, q_head, k_sample, k_token, k_head,
    v_sample, v_token, v_head,
    num_queries, num_keys, num_heads, keys_per_part, map_height, map_width, threshold,
    HEAD_WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr, BLOCK_MASK: tl.constexpr, SPLIT: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Attend from one tile of queries to one part of the keys.

    Grid: (query tiles * S, h, B). If S > 1, `join_parts` combines the parts.
    """
    SCALE: tl.constexpr = LOG2_E / HEAD_WIDTH**0.5
    head, sample = tl.program_id(1), tl.program_id(2)
    tile, part = _tile_and_part(num_queries, BLOCK_QUERIES, SPLIT)
    query = tile * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    asks = query < num_queries
    far = sample.to(tl.int64)
    q = _load_rows(
        queries + far * q_sample + head * q_head, query, q_token, asks, HEAD_WIDTH, BLOCK_WIDTH
    )
    keys += far * k_sample + head * k_head
    values += far * v_sample + head * v_head
    count, own_width = _own_keys(
        lengths, valid_sizes, key_mask, sample, num_keys, map_height, map_width, BLOCK_MASK
    )
    base, stir = _dropout_words(seed, sample, head)

    maximum = tl.full([BLOCK_QUERIES], float("-inf"), ACCUMULATOR)
    total = tl.zeros([BLOCK_QUERIES], ACCUMULATOR)
    read = tl.zeros([BLOCK_QUERIES, BLOCK_WIDTH], ACCUMULATOR)
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
        higher = tl.maximum(maximum, tl.max(scores, 1) * SCALE)
        # Without a mask at least one key of the tile is read, so the new maximum is finite.
        finite = higher
        if key_mask is not None:
            finite = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores * SCALE - finite[:, None])
        shrink = tl.exp2(maximum - finite)
        total = total * shrink + tl.sum(weights, 1)
        if seed is not None:
            kept = _kept(query[:, None], rank[None, :], base, stir, threshold)
            weights = tl.where(kept, weights, 0.0)
        update = tl.dot(weights.to(v.dtype), v, out_dtype=ACCUMULATOR, input_precision="ieee")
        read = read * shrink[:, None] + update
        maximum = higher

    total = tl.where(maximum > float("-inf"), total, 1.0)
    read = read * (_dropout_scale(seed, threshold, ACCUMULATOR) / total)[:, None]
    far += part * tl.num_programs(2)
    outputs += (far * num_queries * num_heads + head) * HEAD_WIDTH
    _store_rows(outputs, query, num_heads * HEAD_WIDTH, asks, read, HEAD_WIDTH, BLOCK_WIDTH)
    logsumexps += (far * num_heads + head) * num_queries
    tl.store(logsumexps + query, maximum + tl.log2(total), mask=asks)


@triton.jit
def join_parts(
    parts,  # [S, B, n, h, d]
    part_logsumexps,  # [S, B, h, n]
    outputs,  # [B, n, h, d]
    logsumexps,  # [B, h, n]
    num_queries, num_heads, num_parts,
    HEAD_WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_QUERIES: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Combine the outputs of the parts of the keys, in their order. All tensors are contiguous.

    Grid: (query tiles, h, B).
    """
    head, sample = tl.program_id(1), tl.program_id(2)
    query = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    asks = query < num_queries
    stride = num_heads * HEAD_WIDTH
    maximum = tl.full([BLOCK_QUERIES], float("-inf"), ACCUMULATOR)
    total = tl.zeros([BLOCK_QUERIES], ACCUMULATOR)
    read = tl.zeros([BLOCK_QUERIES, BLOCK_WIDTH], ACCUMULATOR)
    for part in range(num_parts):
        far = sample.to(tl.int64) + part * tl.num_programs(2)
        row = (far * num_heads + head) * num_queries
        summand = tl.load(part_logsumexps + row + query, mask=asks, other=0.0)
        source = parts + (far * num_queries * num_heads + head) * HEAD_WIDTH
        values = _load_rows(source, query, stride, asks, HEAD_WIDTH, BLOCK_WIDTH)
        higher = tl.maximum(maximum, summand)
        # -inf for a part after the sample's keys, and for a sample without keys.
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        shrink, weight = tl.exp2(maximum - finite), tl.exp2(summand - finite)
        total = total * shrink + weight
        read = read * shrink[:, None] + values * weight[:, None]
        maximum = higher
    total = tl.where(maximum == float("-inf"), 1.0, total)
    far = sample.to(tl.int64)
    outputs += (far * num_queries * num_heads + head) * HEAD_WIDTH
    _store_rows(outputs, query, stride, asks, read / total[:, None], HEAD_WIDTH, BLOCK_WIDTH)
    logsumexps += (far * num_heads + head) * num_queries
    tl.store(logsumexps + query, maximum + tl.log2(total), mask=asks)
