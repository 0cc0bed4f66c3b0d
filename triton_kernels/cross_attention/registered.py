"""Registration of cross-attention with `torch.library`: forward, backward and output shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..runtime.dispatch import kernel_module
from ..runtime.registration import LIBRARY, below_autograd, differentiate, operation
from .key_mask import Dropout, KeyMask

_OPTIONS = (
    "Tensor? key_lengths, Tensor? key_mask, Tensor? valid_sizes, int[]? map_size,"
    " float dropout_p, Tensor? seed"
)


@operation(f"(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> (Tensor, Tensor)")
def cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None,
    key_mask: Tensor | None,
    valid_sizes: Tensor | None,
    map_size: list[int] | None,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute the output [B, n, h, d] and the base-2 logsumexp of the scores [B, h, n]."""
    keys = KeyMask(key_lengths, key_mask, valid_sizes, map_size)
    module = kernel_module("cross_attention", q, k)
    return module.forward(q, k, v, keys, Dropout(dropout_p, seed))


@torch.library.register_fake("fiber::cross_attention", lib=LIBRARY)
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    batch, queries, heads = q.shape[:3]
    return q.new_empty(q.shape), q.new_empty(batch, heads, queries, dtype=wide)


@operation(
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp,"
    f" {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
)
def cross_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    key_lengths: Tensor | None,
    key_mask: Tensor | None,
    valid_sizes: Tensor | None,
    map_size: list[int] | None,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k and v."""
    keys = KeyMask(key_lengths, key_mask, valid_sizes, map_size)
    module = kernel_module("cross_attention", q, k)
    return module.backward(grad, q, k, v, out, logsumexp, keys, Dropout(dropout_p, seed))


@torch.library.register_fake("fiber::cross_attention_backward", lib=LIBRARY)
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


class _CrossAttention(Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        output = below_autograd(cross_attention, arguments)
        q, k, v, key_lengths, key_mask, valid_sizes, ctx.map_size, ctx.dropout_p, seed = arguments
        ctx.save_for_backward(q, k, v, *output, key_lengths, key_mask, valid_sizes, seed)
        ctx.mark_non_differentiable(output[1])
        # The logsumexp needs no gradient: do not materialize zeros for it.
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return (None,) * 9
        *tensors, key_lengths, key_mask, valid_sizes, seed = ctx.saved_tensors
        options = (key_lengths, key_mask, valid_sizes, ctx.map_size, ctx.dropout_p, seed)
        input_grads = below_autograd(cross_attention_backward, (grads[0], *tensors, *options))
        return *input_grads, None, None, None, None, None, None


differentiate(cross_attention, _CrossAttention)
