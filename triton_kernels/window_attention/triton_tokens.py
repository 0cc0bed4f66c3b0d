"""Device functions shared by the window attention kernels: indexing, loads and stores.

Padding, rolling, partitioning and merging are index arithmetic; tokens are read in place.

Values per token pair, such as the bias and its gradient, are stored in fragments of 16 queries by 8
keys, in the register layout of the GPU's matrix units (`pair_offsets`), so that they are loaded and
stored 16 bytes at a time without shuffles.

Notation: B batch size, (H, W) map size, h heads, d head dim, w window size, N = w * w tokens per
window, S >= N stored rows and columns of pairs, nW windows per full-size map.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def find_window(
    index,  # index of the window in the batch, 0 ... B nW - 1
    sizes,  # [B, 2] height and width of each sample's valid region; None unless SIZED
    height, width,  # H, W
    down, across,  # windows along H and W
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, SIZED: tl.constexpr,
):  # fmt: skip
    """Locate a window of the batch in its sample's valid region.

    Returns:
        window: (height and width of the valid region, first row and column of the window after the
            roll, row and column at which positions wrap around). If the window is outside the valid
            region, the height and width are 0 and the other values are those of the unrolled
            tensor, so that zeros are stored there.
        bias_class: window class; see `plan_expand`.
        first_token: number of tokens before the sample, int64.
    """
    sample, window = index // (down * across), index % (down * across)
    window_y, window_x = window // across, window % across
    own_height, own_width, own_down, own_across = height, width, down, across
    roll = SHIFT
    if SIZED:
        own_height = tl.load(sizes + sample * 2).to(tl.int32)
        own_width = tl.load(sizes + sample * 2 + 1).to(tl.int32)
        own_height = tl.minimum(tl.maximum(own_height, 0), height)
        own_width = tl.minimum(tl.maximum(own_width, 0), width)
        own_down = (own_height + WINDOW - 1) // WINDOW
        own_across = (own_width + WINDOW - 1) // WINDOW
        exists = (window_y < own_down) & (window_x < own_across)
        own_height, own_width = tl.where(exists, own_height, 0), tl.where(exists, own_width, 0)
        roll = tl.where(exists, SHIFT, 0)
        own_down = tl.where(exists, own_down, down)
        own_across = tl.where(exists, own_across, across)
    bias_class = 0
    if SHIFT > 0:
        between_rows = (window_y == own_down - 1).to(tl.int32)
        bias_class = between_rows * 2 + (window_x == own_across - 1).to(tl.int32)
    top, left = window_y * WINDOW + roll, window_x * WINDOW + roll
    window = (own_height, own_width, top, left, own_down * WINDOW, own_across * WINDOW)
    return window, bias_class, sample.to(tl.int64) * height * width


@triton.jit
def find_tokens(position, window, height, width, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    """Map positions [n] in a window, in row-major order, to tokens of the sample.

    All three masks are False for positions >= N.

    Returns:
        index: [n] y * W + x of the token; meaningful only where `stored` is True.
        valid: [n] True if the token is in the sample's valid region.
        stored: [n] True if the token is in the tensor, including outside the valid region.
        padded: [n] True for window positions outside the valid region. They are attended to, with
            the key and value given by the qkv bias.
    """
    own_height, own_width, top, left, wrap_height, wrap_width = window
    y, x = top + position // WINDOW, left + position % WINDOW
    if SHIFT > 0:
        y = tl.where(y >= wrap_height, y - wrap_height, y)
        x = tl.where(x >= wrap_width, x - wrap_width, x)
    inside = position < WINDOW * WINDOW
    valid = inside & (y < own_height) & (x < own_width)
    return y * width + x, valid, inside & (y < height) & (x < width), inside & (valid == 0)


@triton.jit
def make_mask(chosen, column, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """Return a mask of [n, BLOCK] elements, or None to select all."""
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
def load_tokens(
    source,  # pointer to the head's first element in the sample
    tokens,  # from `find_tokens`
    column,  # [BLOCK]
    stride,  # elements from one token to the next
    WIDTH: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Load [n, BLOCK] elements, with 0 at positions without a valid token."""
    index, valid, _stored, _padded = tokens
    mask = make_mask(valid, column, WIDTH, MASKED)
    place = source + index[:, None] * stride + column[None, :]
    if mask is None:
        return tl.load(place)
    else:
        return tl.load(place, mask=mask, other=0.0)


@triton.jit
def load_padded(
    source, padding, tokens, column, stride, WIDTH: tl.constexpr, MASKED: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    """Load keys or values [n, BLOCK], with `padding` [d] at padded positions."""
    rows = load_tokens(source, tokens, column, stride, WIDTH, MASKED)
    if PADDED:
        _index, _valid, _stored, padded = tokens
        row = tl.load(padding + column, mask=column < WIDTH, other=0.0).to(rows.dtype)
        rows = tl.where(padded[:, None], row[None, :], rows)
    return rows


@triton.jit
def load_key_value(
    source,  # pointer to the head's first query in the sample, in [H, W, 3, h, d]
    padding,  # pointer to the head's query in [3, h, d]
    tokens, column, channels,
    WIDTH: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Load keys and values, [n, BLOCK] each."""
    key = load_padded(
        source + channels, padding + channels, tokens, column, 3 * channels, WIDTH, MASKED, PADDED
    )
    value = load_padded(
        source + 2 * channels, padding + 2 * channels, tokens, column, 3 * channels, WIDTH, MASKED,
        PADDED,
    )  # fmt: skip
    return key, value


@triton.jit
def store_tokens(
    target, values, tokens, column, stride, WIDTH: tl.constexpr, MASKED: tl.constexpr,
    SIZED: tl.constexpr,
):  # fmt: skip
    """Store [n, BLOCK] elements, with 0 for tokens outside the sample's valid region."""
    index, valid, stored, _padded = tokens
    mask = make_mask(stored, column, WIDTH, MASKED)
    if SIZED:
        values = tl.where(valid[:, None], values, 0.0)
    place = target + index[:, None] * stride + column[None, :]
    if mask is None:
        tl.store(place, values.to(target.dtype.element_ty))
    else:
        tl.store(place, values.to(target.dtype.element_ty), mask=mask)


@triton.jit
def pair_offsets(
    STORED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DOWN: tl.constexpr
):
    """Compute the offsets [ROWS * COLUMNS] of a tile of pairs made of whole fragments.

    If DOWN, fragments are in column-major order. Offsets of the tile at row r and column c are
    relative to r * STORED + c * 16. The bits of an offset within a fragment are, from the
    highest: row modulo 8 (3 bits), column pair (2), half of the rows (1), column in the pair (1).
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
    """Reshape [ROWS * COLUMNS] elements in the order of `pair_offsets` to [ROWS, COLUMNS]."""
    if DOWN:
        parts = tl.reshape(flat, [COLUMNS // 8, ROWS // 16, 8, 4, 2, 2])
        parts = tl.permute(parts, (1, 4, 2, 0, 3, 5))
    else:
        parts = tl.reshape(flat, [ROWS // 16, COLUMNS // 8, 8, 4, 2, 2])
        parts = tl.permute(parts, (0, 4, 2, 1, 3, 5))
    return tl.reshape(parts, [ROWS, COLUMNS])


@triton.jit
def flatten_pairs(pairs, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DOWN: tl.constexpr):
    """Inverse of `unflatten_pairs`."""
    parts = tl.reshape(pairs, [ROWS // 16, 2, 8, COLUMNS // 8, 4, 2])
    if DOWN:
        parts = tl.permute(parts, (3, 0, 2, 4, 1, 5))
    else:
        parts = tl.permute(parts, (0, 3, 2, 4, 1, 5))
    return tl.reshape(parts, [ROWS * COLUMNS])


@triton.jit
def load_pairs(
    source, STORED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DOWN: tl.constexpr
):
    """Load a [ROWS, COLUMNS] tile of pairs."""
    flat = tl.load(source + pair_offsets(STORED, ROWS, COLUMNS, DOWN))
    return unflatten_pairs(flat, ROWS, COLUMNS, DOWN)
