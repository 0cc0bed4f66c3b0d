"""What the kernels of window attention share: where tokens lie, and how they are read and written.

A program reads the tokens of its window where they lie in the map, so that padding, rolling,
cutting and putting together are arithmetic on indices.

Scores of pairs of tokens, such as the bias and its gradient, are stored in fragments of 16 queries
by 8 keys, in the order in which the matrix units of GPUs hold them (`pair_places`): a program then
reads and writes them as they are, 16 bytes at a time.

Letters: B batch, h heads, d head width, w window side, N = w * w, S >= N stored rows and columns
of pairs, nW windows of one map of the tensor's size.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def find_window(
    number,
    sizes,
    height,
    width,
    down,
    across,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    SIZED: tl.constexpr,
):
    """Place a window of the batch in its sample's own map.

    Returns:
        (rows, columns of the sample's own map; the window's first row and column, roll included;
        row and column from where on places wrap around; class of the bias; sample). Where the
        sample's own map has no such window, rows and columns are 0 and the places are those of
        the unrolled tensor, which have to come out as 0.
    """
    sample, window = number // (down * across), number % (down * across)
    window_y, window_x = window // across, window % across
    rows, columns, own_down, own_across = height, width, down, across
    roll = SHIFT
    if SIZED:
        rows = tl.load(sizes + sample * 2).to(tl.int32)
        columns = tl.load(sizes + sample * 2 + 1).to(tl.int32)
        rows = tl.minimum(tl.maximum(rows, 0), height)
        columns = tl.minimum(tl.maximum(columns, 0), width)
        own_down = (rows + WINDOW - 1) // WINDOW
        own_across = (columns + WINDOW - 1) // WINDOW
        own = (window_y < own_down) & (window_x < own_across)
        rows, columns = tl.where(own, rows, 0), tl.where(own, columns, 0)
        roll = tl.where(own, SHIFT, 0)
        own_down, own_across = tl.where(own, own_down, down), tl.where(own, own_across, across)
    seams = 0
    if SHIFT > 0:
        between_rows = (window_y == own_down - 1).to(tl.int32)
        seams = between_rows * 2 + (window_x == own_across - 1).to(tl.int32)
    top, left = window_y * WINDOW + roll, window_x * WINDOW + roll
    return rows, columns, top, left, own_down * WINDOW, own_across * WINDOW, seams, sample


@triton.jit
def find_tokens(place, window, height, width, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    """Say for places of a window (from `find_window`) which token of the map stands there.

    Returns:
        (the token's number in the sample; whether the sample has it; whether the tensor has it;
        whether the place is padding that keys and values are taken from).
    """
    y, x = window[2] + place // WINDOW, window[3] + place % WINDOW
    if SHIFT > 0:
        y = tl.where(y >= window[4], y - window[4], y)
        x = tl.where(x >= window[5], x - window[5], x)
    inside = place < WINDOW * WINDOW
    real = inside & (y < window[0]) & (x < window[1])
    return y * width + x, real, inside & (y < height) & (x < width), inside & (real == 0)


@triton.jit
def mask_of(chosen, column, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """The mask of (tokens, columns) elements; None where all are there."""
    if MASKED:
        if column.shape[0] != WIDTH:
            return chosen[:, None] & (column < WIDTH)[None, :]
        else:
            return chosen[:, None]
    else:
        if column.shape[0] != WIDTH:
            return (column < WIDTH)[None, :]
        else:
            return None


@triton.jit
def load_tokens(source, tokens, column, stride, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """Load (tokens, columns) elements, 0 where there is no token; `source` is the head's first."""
    mask = mask_of(tokens[1], column, WIDTH, MASKED)
    place = source + tokens[0][:, None] * stride + column[None, :]
    if mask is None:
        return tl.load(place)
    else:
        return tl.load(place, mask=mask, other=0.0)


@triton.jit
def load_keys(
    source, padding, tokens, column, stride, WIDTH: tl.constexpr, MASKED: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    """Load keys or values; a padded place of the window holds those of a zero token."""
    keys = load_tokens(source, tokens, column, stride, WIDTH, MASKED)
    if PADDED:
        row = tl.load(padding + column, mask=column < WIDTH, other=0.0).to(keys.dtype)
        keys = tl.where(tokens[3][:, None], row[None, :], keys)
    return keys


@triton.jit
def store_tokens(
    target, values, tokens, column, stride, WIDTH: tl.constexpr, MASKED: tl.constexpr,
    SIZED: tl.constexpr,
):  # fmt: skip
    """Store (tokens, columns) elements; 0 where the tensor has a token that the sample has not."""
    mask = mask_of(tokens[2], column, WIDTH, MASKED)
    if SIZED:
        values = tl.where(tokens[1][:, None], values, 0.0)
    place = target + tokens[0][:, None] * stride + column[None, :]
    if mask is None:
        tl.store(place, values.to(target.dtype.element_ty))
    else:
        tl.store(place, values.to(target.dtype.element_ty), mask=mask)


@triton.jit
def pair_places(
    STORED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DOWN: tl.constexpr
):
    """Offsets (ROWS * COLUMNS,) of a tile of pairs: whole fragments, down first or across first.

    The first one is that of row r and column c at r * STORED + c * 16. In a fragment, the bits of
    an offset are, from the highest: 3 of the row modulo 8, 2 of the pair of columns, 1 of the half
    of the rows, 1 of the column in its pair.
    """
    index = tl.arange(0, ROWS * COLUMNS)
    fragment, inside = index // 128, index % 128
    if ROWS == 16:
        return index
    elif DOWN:
        row, column = fragment % (ROWS // 16), fragment // (ROWS // 16)
        return row * (16 * STORED) + column * 128 + inside
    else:
        row, column = fragment // (COLUMNS // 8), fragment % (COLUMNS // 8)
        return row * (16 * STORED) + column * 128 + inside


@triton.jit
def unflatten_pairs(flat, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DOWN: tl.constexpr):
    """Bring (ROWS * COLUMNS,) elements in the order of `pair_places` into (ROWS, COLUMNS)."""
    if DOWN:
        parts = tl.reshape(flat, [COLUMNS // 8, ROWS // 16, 8, 4, 2, 2])
        parts = tl.permute(parts, (1, 4, 2, 0, 3, 5))
    else:
        parts = tl.reshape(flat, [ROWS // 16, COLUMNS // 8, 8, 4, 2, 2])
        parts = tl.permute(parts, (0, 4, 2, 1, 3, 5))
    return tl.reshape(parts, [ROWS, COLUMNS])


@triton.jit
def flatten_pairs(pairs, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DOWN: tl.constexpr):
    """The way back of `unflatten_pairs`."""
    parts = tl.reshape(pairs, [ROWS // 16, 2, 8, COLUMNS // 8, 4, 2])
    if DOWN:
        parts = tl.permute(parts, (3, 0, 2, 4, 1, 5))
    else:
        parts = tl.permute(parts, (0, 3, 2, 4, 1, 5))
    return tl.reshape(parts, [ROWS * COLUMNS])


@triton.jit
def load_pairs(
    source,
    STORED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DOWN: tl.constexpr,
):
    """Load a (ROWS, COLUMNS) tile of pairs."""
    flat = tl.load(source + pair_places(STORED, ROWS, COLUMNS, DOWN))
    return unflatten_pairs(flat, ROWS, COLUMNS, DOWN)
