"""Public window attention function, which checks arguments and calls the registered operation.

Notation: B batch size, (H, W) map size, h heads, d head dim, w window size.
"""

from __future__ import annotations

from torch import Tensor

from ..runtime.argument_checks import refuse_to_export, require, require_one_device
from ..runtime.dispatch import is_exporting
from . import export, registered


def window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    *,
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None = None,
) -> Tensor:
    """Attend within (shifted) square windows of a map, with a relative position bias.

    The map is padded at the bottom and right to a multiple of the window size, rolled by
    (-shift, -shift), partitioned into windows, attended, merged, rolled back and cropped. Padded
    positions also provide keys and values: those of `qkv_bias`, the projection of a zero token. In
    a rolled map, -100 is added to the scores of token pairs from opposite sides of the border.

    Args:
        qkv: [B, H, W, 3, h, d] queries, keys and values of the map; queries are not scaled by
            d ** -0.5.
        bias_table: [(2 w - 1) ** 2, h] relative position bias. A query at an offset of (dy, dx)
            tokens from its key uses row (dy + w - 1) * (2 w - 1) + dx + w - 1.
        qkv_bias: [3, h, d] query, key and value at padded positions.
        window_size: w, window side length in tokens.
        shift: roll in tokens, 0 <= shift < w.
        valid_sizes: [B, 2] integer (height, width) of each sample's valid region, in the top left
            corner. Each region is padded, rolled and partitioned separately. Outputs outside it are
            0. If None, the whole map is valid.

    Returns:
        [B, H, W, h, d] in qkv's dtype.

    Raises:
        ValueError: if shapes or devices do not match; the message lists the shapes.

    Source: Swin Transformer (Liu et al., 2021); padding as in its detection code.
    """
    named = {"qkv": qkv, "bias_table": bias_table, "qkv_bias": qkv_bias}
    require(qkv.dim() == 6 and qkv.shape[3] == 3, "qkv (B, H, W, 3, h, d)", named)
    require(min(qkv.shape[1:3]) > 0, "a map with at least one token", named)
    heads, width = qkv.shape[4:]
    allowed = f"0 <= shift < window_size (shift {shift}, window_size {window_size})"
    require(0 <= shift < window_size, allowed, named)
    rows = (2 * window_size - 1) ** 2
    require(bias_table.shape == (rows, heads), f"bias_table ({rows}, {heads})", named)
    require(qkv_bias.shape == (3, heads, width), f"qkv_bias (3, {heads}, {width})", named)
    if valid_sizes is not None:
        named["valid_sizes"] = valid_sizes
        require(valid_sizes.shape == (qkv.shape[0], 2), "valid_sizes (B, 2)", named)
    require_one_device(named)
    if is_exporting():
        refuse_to_export("window_attention", valid_sizes=valid_sizes is not None)
        return export.window_attention(
            qkv, bias_table, qkv_bias, window_size=window_size, shift=shift
        )
    return registered.window_attention(qkv, bias_table, qkv_bias, window_size, shift, valid_sizes)
