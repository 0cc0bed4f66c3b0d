"""Reference cross-attention for tests, written as loops over samples and heads."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor) -> Tensor:
    """Attend from q [B, n, h, d] to the keys selected by key_mask [B, m], one head at a time."""
    samples = []
    for sample in range(q.shape[0]):
        unmasked = key_mask[sample].nonzero()[:, 0]
        heads = []
        for head in range(q.shape[2]):
            if len(unmasked) == 0:
                heads.append(torch.zeros_like(q[sample, :, head]))
                continue
            keys, values = k[sample, unmasked, head], v[sample, unmasked, head]
            scores = q[sample, :, head] @ keys.T / q.shape[3] ** 0.5
            heads.append(torch.exp(scores - scores.logsumexp(1, keepdim=True)) @ values)
        samples.append(torch.stack(heads, 1))
    return torch.stack(samples)
