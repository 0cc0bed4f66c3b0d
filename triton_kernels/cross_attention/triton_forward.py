"""Forward kernels of cross-attention, and device functions shared with the backward kernels.

Notation: B batch size, n queries, m keys, h heads, d head dim, S parts of a split loop.

A program handles one head of one sample. Loops iterate over keys by rank. The valid keys of a
sample have the lowest ranks: its real tokens, or the positions in its valid region in row-major
order. Other keys are not loaded, so they may hold any value.

The online softmax and the backward pass from the logsumexp are those of FlashAttention-2.

Source: FlashAttention-2 (Dao 2023).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..runtime.triton_math import dot

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _own_keys(
    lengths, valid_sizes, key_mask, sample, num_keys, map_height, map_width,
    BLOCK_MASK: tl.constexpr,
):  # fmt: skip
    """Return the number of a sample's valid keys, and the width of its valid region (at least 1).

    With a mask, all keys up to the last unmasked one count as valid.
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
        pointers = key_mask + sample.to(tl.int64) * num_keys + position
        unmasked = tl.load(pointers, mask=position < num_keys, other=0) != 0
        count = tl.max(tl.where(unmasked, position + 1, 0), 0)
    return count, own_width


@triton.jit
def _is_read(rank, below, key_mask, sample, num_keys):
    """Return True for unmasked keys with ranks less than `below`."""
    is_read = rank < below
    if key_mask is not None:
        pointers = key_mask + sample.to(tl.int64) * num_keys + rank
        is_read = is_read & (tl.load(pointers, mask=is_read, other=0) != 0)
    return is_read


@triton.jit
def _tile_and_part(length, BLOCK: tl.constexpr, SPLIT: tl.constexpr):
    """Return this program's tile of one sequence and its part of the loop over the other."""
    if SPLIT:
        tiles = tl.cdiv(length, BLOCK)
        return tl.program_id(0) % tiles, tl.program_id(0) // tiles
    else:
        return tl.program_id(0), 0


@triton.jit
def _position(rank, own_width, map_width, valid_sizes):
    """Convert the rank of a valid key to its position in the tensor."""
    if valid_sizes is None:
        return rank
    else:
        return rank // own_width * map_width + rank % own_width


@triton.jit
def _any_position(rank, count, own_width, map_width, valid_sizes):
    """Convert any rank below m to a position. Ranks past the valid keys cover all other keys."""
    if valid_sizes is None:
        return rank
    else:
        own_height = count // own_width
        # Columns to the right of the valid region; 0 if the sample has no keys.
        columns = tl.where(count > 0, map_width - own_width, 0)
        other = rank - count
        divisor = tl.maximum(columns, 1)
        right = other // divisor * map_width + own_width + other % divisor
        inside = _position(rank, own_width, map_width, valid_sizes)
        return tl.where(rank < count, inside, tl.where(other < own_height * columns, right, rank))


@triton.jit
def _load_rows(pointer, rows, stride, present, HEAD_WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Load [rows, BLOCK_WIDTH] of one head; rows that are not `present` are 0."""
    columns = tl.arange(0, BLOCK_WIDTH)
    mask = present[:, None]
    if HEAD_WIDTH != BLOCK_WIDTH:
        mask = mask & (columns < HEAD_WIDTH)[None, :]
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _store_rows(
    pointer, rows, stride, present, tile, HEAD_WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr
):
    """Store the `present` rows of one head, [rows, BLOCK_WIDTH]."""
    columns = tl.arange(0, BLOCK_WIDTH)
    mask = present[:, None]
    if HEAD_WIDTH != BLOCK_WIDTH:
        mask = mask & (columns < HEAD_WIDTH)[None, :]
    pointers = pointer + rows[:, None] * stride + columns[None, :]
    tl.store(pointers, tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _dropout_seeds(seed, sample, head):
    """Return two random integers for one head of one sample, or zeros without dropout."""
    if seed is None:
        return 0, 0
    else:
        base, mix, _, _ = tl.philox(tl.load(seed), sample, head, 0, 0)
        return base, mix


@triton.jit
def _kept(query, key, base, mix, threshold):
    """Return a mask of the weights that dropout keeps, given int32 query and key indices.

    Running Philox for every weight would cost several times as much as attention. Instead, its
    output (base, mix) for each head of each sample seeds a cheap hash: the query and key indices
    are combined into a 32-bit word, which a bijection with two multiplications mixes. The mask
    depends only on the seed and the indices of the sample, head, query and key, so it is the same
    for all tile sizes and splits, and in the forward and backward passes. The probability of
    keeping a weight is (2^31 - threshold) / 2^32.
    """
    # Odd multipliers with no collisions among the first 4800 queries and 4800 keys.
    row = base + query.to(tl.uint32) * 0x9E3779B1
    word = row + key.to(tl.uint32) * 0x85EBCA6B
    word = (word ^ (word >> 16)) * 0x21F0AAAD
    word = (word ^ (word >> 15) ^ mix) * 0x735A2D97
    return word.to(tl.int32, bitcast=True) >= threshold


@triton.jit
def _dropout_scale(seed, threshold, ACCUMULATOR: tl.constexpr):
    """Return 1 / (1 - p)."""
    if seed is None:
        return tl.full([], 1.0, ACCUMULATOR)
    else:
        return 4294967296.0 / (2147483648.0 - threshold.to(ACCUMULATOR))


@triton.jit
def _mask_scores(scores, is_read, key_mask):
    """Set scores to -inf where `is_read` (broadcast) is False."""
    if key_mask is None:
        return tl.where(is_read, scores, float("-inf"))
    else:
        # `is_read` was loaded from memory, so an addition to each score is cheaper than a select.
        return scores + tl.where(is_read, 0.0, float("-inf"))


@triton.jit
def attend(
    queries,  # [B, n, h, d]
    keys,  # [B, m, h, d]
    values,  # [B, m, h, d]
    lengths,  # [B] number of keys per sample, or None
    valid_sizes,  # [B, 2] height and width of each sample's valid region, or None
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
    """Compute attention from a tile of queries to one part of the keys.

    Grid: (query tiles * S, h, B). If S > 1, `join_parts` combines the parts.
    """
    SCALE: tl.constexpr = LOG2_E / HEAD_WIDTH**0.5
    head, sample = tl.program_id(1), tl.program_id(2)
    tile, part = _tile_and_part(num_queries, BLOCK_QUERIES, SPLIT)
    query = tile * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    valid = query < num_queries
    index = sample.to(tl.int64)
    queries = queries + index * q_sample + head * q_head
    q = _load_rows(queries, query, q_token, valid, HEAD_WIDTH, BLOCK_WIDTH)
    keys += index * k_sample + head * k_head
    values += index * v_sample + head * v_head
    count, own_width = _own_keys(
        lengths, valid_sizes, key_mask, sample, num_keys, map_height, map_width, BLOCK_MASK
    )
    base, mix = _dropout_seeds(seed, sample, head)

    maximum = tl.full([BLOCK_QUERIES], float("-inf"), ACCUMULATOR)
    total = tl.zeros([BLOCK_QUERIES], ACCUMULATOR)
    out = tl.zeros([BLOCK_QUERIES, BLOCK_WIDTH], ACCUMULATOR)
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
        new_maximum = tl.maximum(maximum, tl.max(scores, 1) * SCALE)
        # Finite without a mask, since at least one key of the tile is read.
        shift = new_maximum
        if key_mask is not None:
            shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        weights = tl.exp2(scores * SCALE - shift[:, None])
        rescale = tl.exp2(maximum - shift)
        total = total * rescale + tl.sum(weights, 1)
        if seed is not None:
            kept = _kept(query[:, None], rank[None, :], base, mix, threshold)
            weights = tl.where(kept, weights, 0.0)
        update = dot(weights.to(v.dtype), v, ACCUMULATOR)
        out = out * rescale[:, None] + update
        maximum = new_maximum

    total = tl.where(maximum > float("-inf"), total, 1.0)
    out = out * (_dropout_scale(seed, threshold, ACCUMULATOR) / total)[:, None]
    index += part * tl.num_programs(2)
    outputs += (index * num_queries * num_heads + head) * HEAD_WIDTH
    _store_rows(outputs, query, num_heads * HEAD_WIDTH, valid, out, HEAD_WIDTH, BLOCK_WIDTH)
    logsumexps += (index * num_heads + head) * num_queries
    tl.store(logsumexps + query, maximum + tl.log2(total), mask=valid)


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
    """Combine the outputs of the parts in order. All tensors are contiguous.

    Grid: (query tiles, h, B).
    """
    head, sample = tl.program_id(1), tl.program_id(2)
    query = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    valid = query < num_queries
    stride = num_heads * HEAD_WIDTH
    maximum = tl.full([BLOCK_QUERIES], float("-inf"), ACCUMULATOR)
    total = tl.zeros([BLOCK_QUERIES], ACCUMULATOR)
    out = tl.zeros([BLOCK_QUERIES, BLOCK_WIDTH], ACCUMULATOR)
    for part in range(num_parts):
        index = sample.to(tl.int64) + part * tl.num_programs(2)
        row = (index * num_heads + head) * num_queries
        summand = tl.load(part_logsumexps + row + query, mask=valid, other=0.0)
        source = parts + (index * num_queries * num_heads + head) * HEAD_WIDTH
        values = _load_rows(source, query, stride, valid, HEAD_WIDTH, BLOCK_WIDTH)
        new_maximum = tl.maximum(maximum, summand)
        # -inf for parts past the sample's keys, and for samples without keys.
        shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        rescale, weight = tl.exp2(maximum - shift), tl.exp2(summand - shift)
        total = total * rescale + weight
        out = out * rescale[:, None] + values * weight[:, None]
        maximum = new_maximum
    total = tl.where(maximum == float("-inf"), 1.0, total)
    index = sample.to(tl.int64)
    outputs += (index * num_queries * num_heads + head) * HEAD_WIDTH
    _store_rows(outputs, query, stride, valid, out / total[:, None], HEAD_WIDTH, BLOCK_WIDTH)
    logsumexps += (index * num_heads + head) * num_queries
    tl.store(logsumexps + query, maximum + tl.log2(total), mask=valid)
