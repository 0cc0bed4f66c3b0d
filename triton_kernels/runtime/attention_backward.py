"""Backward pass of softmax attention in PyTorch, shared by the operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .scratch import Scratch


def attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor,
    *,
    kept: Tensor | None = None,
    scratch: Scratch,
    out: Sequence[Tensor],
) -> Tensor:
    """Compute the gradients of query, key and value, and write them to `out`.

    Args:
        grad: [b, n, d] gradient of the output.
        query: [b, n, d] scaled queries.
        key: [b, m, d].
        value: [b, m, d].
        weights: [b, n, m] softmax of the scores, float32 or wider.
        kept: [b, n, m] dropout factors of the weights; None without dropout.
        scratch: allocator for intermediate tensors and the result.
        out: tensors for the gradients of query, key and value.

    Returns:
        The gradient of the scores [b, n, m], in scratch memory.
    """
    kept_weights = scratch.cast(weights if kept is None else weights * kept, grad.dtype)
    torch.bmm(kept_weights.transpose(1, 2), grad, out=out[2])
    grad_weights = scratch.empty(*weights.shape, dtype=grad.dtype)
    torch.bmm(grad, value.transpose(1, 2), out=grad_weights)
    grad_weights = scratch.cast(grad_weights, weights.dtype)
    if kept is not None:
        grad_weights *= kept
    # In one pass over memory: weights * (grad_weights - sum(weights * grad_weights)).
    grad_scores = torch.ops.aten._softmax_backward_data(
        grad_weights, weights, -1, weights.dtype, grad_input=grad_weights
    )
    narrow = scratch.cast(grad_scores, query.dtype)
    torch.bmm(narrow, key, out=out[0])
    torch.bmm(narrow.transpose(1, 2), query, out=out[1])
    return grad_scores
