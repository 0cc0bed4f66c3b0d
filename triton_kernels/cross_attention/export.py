"""Cross-attention as plain tensor operations, for `torch.export` and exporters of other formats.

Nothing about sizes is decided while it is traced: they may be symbolic. Differentiable by autograd.
Arguments are checked in `op.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cross_attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Attend from [B, n, h, d] queries to [B, m, h, d] keys and values: [B, n, h, d].

    `key_mask` is [B, m] bool, True = real key; samples without real keys get zeros. Masked values
    must be finite.
    """
    query, key, value = (each.transpose(1, 2) for each in (q, k, v))
    scores = (query * q.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    scores = scores.to(torch.promote_types(q.dtype, torch.float32))
    if key_mask is None:
        return (scores.softmax(-1).to(v.dtype) @ value).transpose(1, 2)
    mask = key_mask[:, None, None]
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    # All weights of a sample without real keys are the same.
    weights = weights * mask.to(weights.dtype)
    return (weights.to(v.dtype) @ value).transpose(1, 2)
