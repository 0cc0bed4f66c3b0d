"""The public operations: argument checks, then the backend that the rule picks.

Letters: B batch, H W map, h heads, d head width, T image tokens, L text tokens, w window side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference, registered


def window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    *,
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None = None,
) -> Tensor:
    """Attend inside (shifted) square windows of a map with a relative position bias.

    The map is padded at the bottom and the right to a multiple of the window, rolled by
    (-shift, -shift), cut into windows, attended, put together again, rolled back and cropped. A
    padded position takes part as a key and a value: it equals the projection of a zero token,
    that is `qkv_bias`. In a rolled map, tokens that come from different sides of the border get
    -100 added to their score.

    Args:
        qkv: (B, H, W, 3, h, d) queries, keys and values of the whole map, heads packed; queries
            are scaled here by d ** -0.5.
        bias_table: ((2 w - 1) ** 2, h); the row of query - key offset (dy, dx) in tokens is
            (dy + w - 1) * (2 w - 1) + dx + w - 1.
        qkv_bias: (3, h, d) query, key and value of padded positions.
        window_size: w, side of a window in tokens.
        shift: roll in tokens, 0 <= shift < w.
        valid_sizes: (B, 2) integer (height, width) of each sample's own map, which starts in the
            first corner and is padded, rolled and cut as if it were alone; positions outside come
            out as 0. None: the whole map is valid.

    Returns:
        (B, H, W, h, d) in the dtype of qkv.

    Raises:
        ValueError: if shapes, devices or dtypes do not fit together, with the shapes.

    Source: Swin Transformer (Liu et al. 2021); padding as in its detection code.
    """
    named = {"qkv": qkv, "bias_table": bias_table, "qkv_bias": qkv_bias}
    _require(qkv.dim() == 6 and qkv.shape[3] == 3, "qkv (B, H, W, 3, h, d)", named)
    _require(min(qkv.shape[1:3]) > 0, "a map of at least one token", named)
    heads, width = qkv.shape[4:]
    _require(0 <= shift < window_size, f"0 <= shift {shift} < window_size {window_size}", named)
    rows = (2 * window_size - 1) ** 2
    _require(bias_table.shape == (rows, heads), f"bias_table ({rows}, {heads})", named)
    _require(qkv_bias.shape == (3, heads, width), f"qkv_bias (3, {heads}, {width})", named)
    if valid_sizes is not None:
        named["valid_sizes"] = valid_sizes
        _require(valid_sizes.shape == (qkv.shape[0], 2), "valid_sizes (B, 2)", named)
    _require_one_device(named)
    return registered.window_attention(qkv, bias_table, qkv_bias, window_size, shift, valid_sizes)


def image_to_text_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None = None,
    *,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Let every image token attend to the real text tokens of its own sample.

    Args:
        q: (B, T, h, d) queries of the image tokens; scaled here by d ** -0.5.
        k: (B, L, h, d) keys of the text.
        v: (B, L, h, d) values of the text.
        key_lengths: (B,) integer, real tokens first; later keys are not read.
        key_mask: (B, L) bool, True = real token; for masks that are no prefix. At most one of
            key_lengths and key_mask may be given; without both every key is real.

    Returns:
        (B, T, h, d) in q's dtype; 0 where a sample has no real key.

    Raises:
        ValueError: if shapes, devices or dtypes do not fit together, with the shapes.

    Source: FIBER (Dou et al. 2022), fusion in the backbone.
    """
    named = {"q": q, "k": k, "v": v}
    _require_attention_shapes(named)
    if key_lengths is not None and key_mask is not None:
        raise ValueError("image_to_text_attention: give key_lengths or key_mask, not both")
    if key_lengths is not None:
        named["key_lengths"] = key_lengths
        _require(key_lengths.shape == q.shape[:1], "key_lengths (B,)", named)
    if key_mask is not None:
        named["key_mask"] = key_mask
        _require(key_mask.shape == k.shape[:2], "key_mask (B, L)", named)
        _require(key_mask.dtype == torch.bool, "a bool key_mask", named)
    _require_one_device(named)
    read, _ = registered.cross_attention(q, k, v, key_lengths, key_mask, None, None, 0.0, None)
    return read


def text_to_image_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    valid_sizes: Tensor | None = None,
    map_size: tuple[int, int] | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Let every text token attend to all image tokens of its own sample.

    Args:
        q: (B, L, h, d) queries of the text; scaled here by d ** -0.5.
        k: (B, T, h, d) keys of the image tokens, row by row.
        v: (B, T, h, d) values of the image tokens.
        valid_sizes: (B, 2) integer (height, width) of each sample's own map; keys outside are
            not read. None, as published: every key is read, padding of the batch included.
        map_size: (H, W) with H * W = T; needed with valid_sizes.
        dropout_p: probability of dropping an attention weight.

    Returns:
        (B, L, h, d) in q's dtype; 0 where a sample has no valid key.

    Raises:
        ValueError: if shapes, devices or dtypes do not fit together, with the shapes.

    Source: FIBER (Dou et al. 2022), fusion in the backbone.
    """
    named = {"q": q, "k": k, "v": v}
    _require_attention_shapes(named)
    if valid_sizes is not None:
        named["valid_sizes"] = valid_sizes
        _require(valid_sizes.shape == (q.shape[0], 2), "valid_sizes (B, 2)", named)
        _require(
            map_size is not None and map_size[0] * map_size[1] == k.shape[1],
            f"map_size with H * W = {k.shape[1]}, not {map_size},",
            named,
        )
    _require_one_device(named)
    seed = None
    if dropout_p:
        # Drawn where the tensors are, so that no device waits and torch's seed decides.
        seed = torch.randint(2**62, (1,), device=q.device)
    size = None if valid_sizes is None else map_size
    read, _ = registered.cross_attention(q, k, v, None, None, valid_sizes, size, dropout_p, seed)
    return read


def gated_residual(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    """Add a gated linear projection: x + gate * (y @ weight.T + bias).

    Args:
        x: (..., C) what the projection is added to.
        y: (..., D) input of the projection, with x's leading dimensions.
        weight: (C, D).
        bias: (C,).
        gate: (1,) learned scalar.

    Returns:
        (..., C).

    Raises:
        ValueError: if shapes or devices do not fit together, with the shapes.
    """
    named = {"x": x, "y": y, "weight": weight, "bias": bias, "gate": gate}
    _require(
        x.shape[:-1] == y.shape[:-1]
        and weight.shape == (x.shape[-1], y.shape[-1])
        and bias.shape == x.shape[-1:]
        and gate.shape == (1,),
        "x (..., C), y (..., D), weight (C, D), bias (C,), gate (1,)",
        named,
    )
    _require_one_device(named)
    return reference.gated_residual(x, y, weight, bias, gate)


def _require(condition: bool, expected: str, named: dict[str, Tensor]) -> None:
    if not condition:
        shapes = ", ".join(f"{name} {tuple(t.shape)} {t.dtype}" for name, t in named.items())
        raise ValueError(f"expected {expected}; got {shapes}")


def _require_attention_shapes(named: dict[str, Tensor]) -> None:
    q, k, v = named["q"], named["k"], named["v"]
    _require(
        q.dim() == 4
        and k.dim() == 4
        and k.shape == v.shape
        and (k.shape[0], *k.shape[2:]) == (q.shape[0], *q.shape[2:]),
        "q (B, n, h, d) and k, v (B, m, h, d)",
        named,
    )
    _require(q.dtype == k.dtype == v.dtype, "one dtype", named)


def _require_one_device(named: dict[str, Tensor]) -> None:
    devices = {tensor.device for tensor in named.values()}
    if len(devices) > 1:
        found = " and ".join(sorted(map(str, devices)))
        _require(False, f"one device, not {found}", named)
