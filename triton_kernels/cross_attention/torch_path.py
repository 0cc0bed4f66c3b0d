"""Cross attention in plain PyTorch, on any device.

Forward and backward are separate functions without autograd: nothing of the size of the scores is
saved between them. Arguments are checked in `op.py`.

Letters: B batch, n queries, m keys, h heads, d head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..runtime.attention_backward import attention_backward
from ..runtime.scratch import Scratch
from .key_mask import Dropout, KeyMask

#: The logsumexp is in base 2, as in the Triton kernels, which compute powers of two.
LOG2_E = math.log2(math.e)


def forward(
    q: Tensor, k: Tensor, v: Tensor, keys: KeyMask, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    """Compute softmax(q @ k.T * d ** -0.5) @ v of every head.

    Args:
        q: [B, n, h, d].
        k: [B, m, h, d].
        v: [B, m, h, d].
        keys: keys that are read.
        dropout: dropout of attention weights.

    Returns:
        The output [B, n, h, d], and the base-2 logsumexp of the scores [B, h, n], float32 or wider.
    """
    k, v, scores = _hide(k, v, keys.as_bool(k.shape[1]))
    query, key, value = (each.transpose(1, 2) for each in (q, k, v))
    if q.device.type == "cpu" and not dropout.p and q.numel() and k.numel():
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=scores
        )
        return out.transpose(1, 2), (logsumexp * LOG2_E).contiguous()
    products = (query * q.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    products = products.to(torch.promote_types(q.dtype, torch.float32))
    if scores is not None:
        products += scores
    weights = products.softmax(-1)
    if dropout.p:
        weights = weights * _draw_kept(weights, dropout)
    out = weights.to(v.dtype) @ value
    return out.transpose(1, 2).contiguous(), products.logsumexp(-1) * LOG2_E


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    keys: KeyMask,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k and v.

    Args:
        grad: [B, n, h, d] gradient of the output.
        q: [B, n, h, d].
        k: [B, m, h, d].
        v: [B, m, h, d].
        out: [B, n, h, d] from `forward`.
        logsumexp: [B, h, n] from `forward`.
        keys: keys that are read.
        dropout: dropout of attention weights.
    """
    key_mask = keys.as_bool(k.shape[1])
    k, v, scores = _hide(k, v, key_mask)
    grad, query, key, value = (each.transpose(1, 2) for each in (grad, q, k, v))
    if q.device.type == "cpu" and not dropout.p and q.numel() and k.numel():
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out.transpose(1, 2), logsumexp / LOG2_E, 0.0, False,
            attn_mask=scores,
        )  # fmt: skip
        grad_query, grad_key, grad_value = found
    else:
        grad_query, grad_key, grad_value = _plain_backward(
            grad, query, key, value, scores, logsumexp.dtype, dropout
        )
    grad_key, grad_value = grad_key.transpose(1, 2), grad_value.transpose(1, 2)
    if key_mask is not None:
        hidden = ~key_mask[..., None, None]
        grad_key, grad_value = grad_key.masked_fill(hidden, 0), grad_value.masked_fill(hidden, 0)
    return grad_query.transpose(1, 2).contiguous(), grad_key.contiguous(), grad_value.contiguous()


def _plain_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scores: Tensor | None,
    wide: torch.dtype,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients with all scores in memory; tensors are [B, h, tokens, d]."""
    scale = query.shape[-1] ** -0.5
    shape = (*query.shape[:3], key.shape[2])
    kept = None
    if dropout.p:
        drawn = _draw_kept(torch.empty(shape, dtype=wide, device=query.device), dropout)
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


def _hide(k: Tensor, v: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Zero keys and values that are not read, and return scores to add, [B, 1, 1, m].

    A sample without keys attends to zeros, so that its output is 0.
    """
    if key_mask is None:
        return k, v, None
    # Keys that are not read may hold anything, NaN included: 0 * NaN would leak.
    hidden = ~key_mask[..., None, None]
    visible = key_mask | ~key_mask.any(1, keepdim=True)
    scores = torch.zeros(visible.shape, dtype=k.dtype, device=k.device)
    scores = scores.masked_fill(~visible, -torch.inf)[:, None, None]
    return k.masked_fill(hidden, 0), v.masked_fill(hidden, 0), scores


def _draw_kept(weights: Tensor, dropout: Dropout) -> Tensor:
    """Draw the factors of attention weights, 0 or 1 / (1 - p), from the seed alone."""
    assert dropout.seed is not None
    generator = torch.Generator(weights.device).manual_seed(int(dropout.seed.item()))
    kept = torch.empty_like(weights, memory_format=torch.contiguous_format)
    return kept.bernoulli_(1 - dropout.p, generator=generator).div_(1 - dropout.p)
