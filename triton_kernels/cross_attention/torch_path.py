"""Cross-attention in PyTorch, for any device.

Forward and backward are separate functions that bypass autograd, so no tensor as large as the
scores is kept between them. Arguments are checked in `op.py`.

Notation: B batch size, n queries, m keys, h heads, d head dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..runtime.attention_backward import attention_backward
from ..runtime.scratch import Scratch
from .key_mask import Dropout, KeyMask

#: Converts the logsumexp to base 2, as in the Triton kernels, which use base-2 exponentials.
LOG2_E = math.log2(math.e)


def forward(
    q: Tensor, k: Tensor, v: Tensor, keys: KeyMask, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    """Compute softmax(q @ k.T * d ** -0.5) @ v for every head.

    Args:
        q: [B, n, h, d].
        k: [B, m, h, d].
        v: [B, m, h, d].
        keys: keys to attend to.
        dropout: dropout of the attention weights.

    Returns:
        The output [B, n, h, d], and the base-2 logsumexp of the scores, [B, h, n] in at least
        float32.
    """
    k, v, bias = _mask(k, v, keys.as_bool(k.shape[1]))
    query, key, value = (each.transpose(1, 2) for each in (q, k, v))
    if q.device.type == "cpu" and not dropout.p and q.numel() and k.numel():
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=bias
        )
        return out.transpose(1, 2), (logsumexp * LOG2_E).contiguous()
    scores = (query * q.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    scores = scores.to(torch.promote_types(q.dtype, torch.float32))
    if bias is not None:
        scores += bias
    weights = scores.softmax(-1)
    if dropout.p:
        weights = weights * _draw_kept(weights, dropout)
    out = weights.to(v.dtype) @ value
    return out.transpose(1, 2).contiguous(), scores.logsumexp(-1) * LOG2_E


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
    """Compute the gradients of q, k and v; `out` and `logsumexp` are the results of `forward`."""
    key_mask = keys.as_bool(k.shape[1])
    k, v, bias = _mask(k, v, key_mask)
    grad, query, key, value = (each.transpose(1, 2) for each in (grad, q, k, v))
    if q.device.type == "cpu" and not dropout.p and q.numel() and k.numel():
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out.transpose(1, 2), logsumexp / LOG2_E, 0.0, False,
            attn_mask=bias,
        )  # fmt: skip
    else:
        grads = _plain_backward(grad, query, key, value, bias, logsumexp.dtype, dropout)
    grad_query, grad_key, grad_value = grads
    grad_key, grad_value = grad_key.transpose(1, 2), grad_value.transpose(1, 2)
    if key_mask is not None:
        masked = ~key_mask[..., None, None]
        grad_key, grad_value = grad_key.masked_fill(masked, 0), grad_value.masked_fill(masked, 0)
    return grad_query.transpose(1, 2).contiguous(), grad_key.contiguous(), grad_value.contiguous()


def _plain_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    wide: torch.dtype,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of query, key and value, [B, h, tokens, d], from the full scores."""
    scale = query.shape[-1] ** -0.5
    shape = (*query.shape[:3], key.shape[2])
    kept = None
    if dropout.p:
        drawn = _draw_kept(torch.empty(shape, dtype=wide, device=query.device), dropout)
        kept = drawn.flatten(0, 1)
    shapes = query.shape, key.shape, value.shape
    grad, query, key, value = (each.flatten(0, 1) for each in (grad, query * scale, key, value))
    out = [torch.empty_like(each) for each in (query, key, value)]
    scores = torch.bmm(query, key.transpose(1, 2)).to(wide)
    if bias is not None:
        scores.view(shape).add_(bias)
    weights, scratch = scores.softmax(-1), Scratch(grad.device)
    attention_backward(grad, query, key, value, weights, kept=kept, scratch=scratch, out=out)
    return (out[0] * scale).view(shapes[0]), out[1].view(shapes[1]), out[2].view(shapes[2])


def _mask(k: Tensor, v: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Zero out masked keys and values; return them with the score bias [B, 1, 1, m].

    A sample without unmasked keys attends to zeros, so its output is 0.
    """
    if key_mask is None:
        return k, v, None
    # Masked keys may hold NaN, and 0 * NaN is NaN.
    masked = ~key_mask[..., None, None]
    visible = key_mask | ~key_mask.any(1, keepdim=True)
    bias = torch.zeros(visible.shape, dtype=k.dtype, device=k.device)
    bias = bias.masked_fill(~visible, -torch.inf)[:, None, None]
    return k.masked_fill(masked, 0), v.masked_fill(masked, 0), bias


def _draw_kept(weights: Tensor, dropout: Dropout) -> Tensor:
    """Sample the dropout factors of attention weights, 0 or 1 / (1 - p), from the seed."""
    assert dropout.seed is not None
    generator = torch.Generator(weights.device).manual_seed(int(dropout.seed.item()))
    kept = torch.empty_like(weights, memory_format=torch.contiguous_format)
    return kept.bernoulli_(1 - dropout.p, generator=generator).div_(1 - dropout.p)
