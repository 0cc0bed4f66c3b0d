"""Public cross-attention functions, which check arguments and call the registered operation.

Notation: B batch size, (H, W) map size, h heads, d head dim, T image tokens, L text tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.argument_checks import refuse_to_export, require, require_one_device
from ..runtime.dispatch import is_exporting
from . import export, registered


def image_to_text_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None = None,
    *,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Attend from image tokens to the text tokens of the same sample.

    Args:
        q: [B, T, h, d] image queries, not scaled by d ** -0.5.
        k: [B, L, h, d] text keys.
        v: [B, L, h, d] text values.
        key_lengths: [B] integer number of real tokens at the start of each text; padding is not
            read.
        key_mask: [B, L] bool, True = real token, for padding that is not at the end. At most one
            of key_lengths and key_mask may be given.

    Returns:
        [B, T, h, d] in q's dtype; zeros for samples without real tokens.

    Raises:
        ValueError: if shapes, devices or dtypes do not match; the message lists the shapes.

    Source: FIBER (Dou et al., 2022), fusion in the backbone.
    """
    named = {"q": q, "k": k, "v": v}
    _require_attention_shapes(named)
    if key_lengths is not None and key_mask is not None:
        raise ValueError("image_to_text_attention: pass key_lengths or key_mask, not both")
    if key_lengths is not None:
        named["key_lengths"] = key_lengths
        require(key_lengths.shape == q.shape[:1], "key_lengths (B,)", named)
    if key_mask is not None:
        named["key_mask"] = key_mask
        require(key_mask.shape == k.shape[:2], "key_mask (B, L)", named)
        require(key_mask.dtype == torch.bool, "key_mask to be bool", named)
    require_one_device(named)
    if is_exporting():
        refuse_to_export("image_to_text_attention", key_lengths=key_lengths is not None)
        return export.cross_attention(q, k, v, key_mask)
    out, _ = registered.cross_attention(q, k, v, key_lengths, key_mask, None, None, 0.0, None)
    return out


def text_to_image_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    valid_sizes: Tensor | None = None,
    map_size: tuple[int, int] | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attend from text tokens to the image tokens of the same sample.

    Args:
        q: [B, L, h, d] text queries, not scaled by d ** -0.5.
        k: [B, T, h, d] image keys in row-major order.
        v: [B, T, h, d] image values.
        valid_sizes: [B, 2] integer (height, width) of each sample's valid region; keys outside are
            not read. If None, texts attend to all keys, including padding, as in the published
            code.
        map_size: (H, W) with H * W = T; required with valid_sizes.
        dropout_p: probability of dropping an attention weight.

    Returns:
        [B, L, h, d] in q's dtype; zeros for samples without valid keys.

    Raises:
        ValueError: if shapes, devices or dtypes do not match; the message lists the shapes.

    Source: FIBER (Dou et al., 2022), fusion in the backbone.
    """
    named = {"q": q, "k": k, "v": v}
    _require_attention_shapes(named)
    if valid_sizes is not None:
        named["valid_sizes"] = valid_sizes
        require(valid_sizes.shape == (q.shape[0], 2), "valid_sizes (B, 2)", named)
        require(
            map_size is not None and map_size[0] * map_size[1] == k.shape[1],
            f"map_size with H * W = {k.shape[1]}, not {map_size}",
            named,
        )
    require_one_device(named)
    if is_exporting():
        refuse_to_export(
            "text_to_image_attention",
            valid_sizes=valid_sizes is not None,
            dropout_p=bool(dropout_p),
        )
        return export.cross_attention(q, k, v)
    seed = None
    if dropout_p:
        # Drawn on the tensors' device, which avoids a synchronization.
        seed = torch.randint(2**62, (1,), device=q.device)
    size = None if valid_sizes is None else map_size
    out, _ = registered.cross_attention(q, k, v, None, None, valid_sizes, size, dropout_p, seed)
    return out


def _require_attention_shapes(named: dict[str, Tensor]) -> None:
    q, k, v = named["q"], named["k"], named["v"]
    require(
        q.dim() == 4
        and k.dim() == 4
        and k.shape == v.shape
        and (k.shape[0], *k.shape[2:]) == (q.shape[0], *q.shape[2:]),
        "q (B, n, h, d) and k, v (B, m, h, d)",
        named,
    )
    require(q.dtype == k.dtype == v.dtype, "q, k and v to have the same dtype", named)
