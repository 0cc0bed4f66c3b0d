"""Backward pass of softmax attention in plain PyTorch, shared by the operations."""

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
    """Write the gradients of scaled queries, keys and values (b, tokens, d); gives the scores'.

    Args:
        grad: of what is read.
        query: scaled.
        key: keys.
        value: values.
        weights: (b, n, m) softmax of the scores, float32 or wider.
        kept: factors of the weights; None for 1.
        scratch: what is computed in between goes there, and so does the result.
        out: where the gradients of the three go.
    """
    read_weights = scratch.cast(weights if kept is None else weights * kept, grad.dtype)
    torch.bmm(read_weights.transpose(1, 2), grad, out=out[2])
    of_weights = scratch.empty(*weights.shape, dtype=grad.dtype)
    torch.bmm(grad, value.transpose(1, 2), out=of_weights)
    of_weights = scratch.cast(of_weights, weights.dtype)
    if kept is not None:
        of_weights *= kept
    # The softmax' own gradient in one pass: weights * (of_weights - their weighted sum).
    of_scores = torch.ops.aten._softmax_backward_data(
        of_weights, weights, -1, weights.dtype, grad_input=of_weights
    )
    narrow = scratch.cast(of_scores, query.dtype)
    torch.bmm(narrow, key, out=out[0])
    torch.bmm(narrow.transpose(1, 2), query, out=out[1])
    return of_scores
