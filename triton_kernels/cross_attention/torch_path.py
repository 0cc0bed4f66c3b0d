"""The operations in plain PyTorch: the specification of their interface, and the path on a CPU.

Window attention is in `reference_windows.py`. Arguments are those of `operations.py`, already
checked. Forward and backward passes are functions of their own, without autograd: nothing of the
size of the scores is kept from one to the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.attention_backward import attention_backward
from ..runtime.scratch import Scratch

#: What the logarithm of a sum counts in: kernels compute powers of two.
LOG2_E = math.log2(math.e)


def cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attend from (B, n, h, d) to those keys of (B, m, h, d) that key_mask (B, m) marks.

    Returns:
        What is read, (B, n, h, d), and the logarithm of the sum of a query's exponentials in base
        2, (B, h, n) float32 or wider.
    """
    k, v, scores = _hide(k, v, key_mask)
    query, key, value = (each.transpose(1, 2) for each in (q, k, v))
    if q.device.type == "cpu" and not dropout_p and q.numel() and k.numel():
        read, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=scores
        )
        return read.transpose(1, 2), (logsumexp * LOG2_E).contiguous()
    products = (query * q.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    products = products.to(torch.promote_types(q.dtype, torch.float32))
    if scores is not None:
        products += scores
    weights = products.softmax(-1)
    if dropout_p:
        weights = weights * _kept(weights, dropout_p, seed)
    read = weights.to(v.dtype) @ value
    return read.transpose(1, 2).contiguous(), products.logsumexp(-1) * LOG2_E


def cross_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    key_mask: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `cross_attention`: of q, k and v."""
    k, v, scores = _hide(k, v, key_mask)
    grad, query, key, value = (each.transpose(1, 2) for each in (grad, q, k, v))
    if q.device.type == "cpu" and not dropout_p and q.numel() and k.numel():
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out.transpose(1, 2), logsumexp / LOG2_E, 0.0, False,
            attn_mask=scores,
        )  # fmt: skip
        of_query, of_key, of_value = found
    else:
        of_query, of_key, of_value = _plain_backward(
            grad, query, key, value, scores, logsumexp.dtype, dropout_p, seed
        )
    of_key, of_value = of_key.transpose(1, 2), of_value.transpose(1, 2)
    if key_mask is not None:
        hidden = ~key_mask[..., None, None]
        of_key, of_value = of_key.masked_fill(hidden, 0), of_value.masked_fill(hidden, 0)
    return of_query.transpose(1, 2).contiguous(), of_key.contiguous(), of_value.contiguous()


def _plain_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scores: Tensor | None,
    wide: torch.dtype,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with every score written out; tensors (B, h, tokens, d)."""
    scale = query.shape[-1] ** -0.5
    shape = (*query.shape[:3], key.shape[2])
    kept = None
    if dropout_p:
        drawn = _kept(torch.empty(shape, dtype=wide, device=query.device), dropout_p, seed)
        kept = drawn.flatten(0, 1)
    grad, flat_query, flat_key, flat_value = (
        each.flatten(0, 1) for each in (grad, query * scale, key, value)
    )
    out = [torch.empty_like(each) for each in (flat_query, flat_key, flat_value)]
    products = torch.bmm(flat_query, flat_key.transpose(1, 2)).to(wide)
    if scores is not None:
        products.view(shape).add_(scores)
    weights = products.softmax(-1)
    scratch = Scratch(grad.device)
    attention_backward(
        grad, flat_query, flat_key, flat_value, weights, kept=kept, scratch=scratch, out=out
    )
    return (
        (out[0] * scale).view(query.shape),
        out[1].view(key.shape),
        out[2].view(value.shape),
    )


def mask_of(
    k: Tensor,
    key_lengths: Tensor | None,
    key_mask: Tensor | None,
    valid_sizes: Tensor | None,
    map_size: Sequence[int] | None,
) -> Tensor | None:
    """Mark the keys that are read, whichever way they are told: (B, m) bool; None for all."""
    if key_mask is not None:
        return key_mask
    size = (map_size[0], map_size[1]) if map_size is not None else None
    return key_mask_of(key_lengths, valid_sizes, size, k.shape[1])


def key_mask_of(
    key_lengths: Tensor | None,
    valid_sizes: Tensor | None,
    map_size: tuple[int, int] | None,
    keys: int,
) -> Tensor | None:
    """Mark the keys that are read: (B, m) bool; None for all of them."""
    if key_lengths is not None:
        if key_lengths.device.type == "cpu" and bool((key_lengths >= keys).all()):
            return None
        return torch.arange(keys, device=key_lengths.device) < key_lengths[:, None]
    if valid_sizes is None or map_size is None:
        return None
    rows = torch.arange(map_size[0], device=valid_sizes.device)[:, None] < valid_sizes[:, :1, None]
    columns = torch.arange(map_size[1], device=valid_sizes.device) < valid_sizes[:, 1:, None]
    return (rows & columns).flatten(1)


def _hide(k: Tensor, v: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Clear keys and values that are not read; gives scores to add, (B, 1, 1, m).

    A sample none of whose keys is read attends to cleared ones: it reads 0.
    """
    if key_mask is None:
        return k, v, None
    # Keys that are not read may hold anything, NaN included: 0 * NaN would leak.
    hidden = ~key_mask[..., None, None]
    visible = key_mask | ~key_mask.any(1, keepdim=True)
    scores = torch.zeros(visible.shape, dtype=k.dtype, device=k.device)
    scores = scores.masked_fill(~visible, -torch.inf)[:, None, None]
    return k.masked_fill(hidden, 0), v.masked_fill(hidden, 0), scores


def _kept(weights: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor:
    """Draw which attention weights stay: 0 or 1 / (1 - p), a function of the seed alone."""
    assert seed is not None
    generator = torch.Generator(weights.device).manual_seed(int(seed.item()))
    kept = torch.empty_like(weights, memory_format=torch.contiguous_format)
    return kept.bernoulli_(1 - dropout_p, generator=generator).div_(1 - dropout_p)
