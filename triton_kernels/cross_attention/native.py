"""Cross attention on a CPU by the extension. Arguments are checked in `op.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiber import _core

from ..runtime import native_arrays
from . import torch_path
from .key_mask import Dropout, KeyMask


def refusal(q: Tensor, k: Tensor) -> str | None:
    """Return why the extension does not take a call; None if it does."""
    return native_arrays.refusal(q, q.shape[3])


def forward(
    q: Tensor, k: Tensor, v: Tensor, keys: KeyMask, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    """Compute the output and the logsumexp; see `torch_path.forward`, which runs with dropout."""
    if dropout.p:
        return torch_path.forward(q, k, v, keys, dropout)
    out = native_arrays.empty_like(q)
    logsumexp = q.new_empty(q.shape[0], q.shape[2], q.shape[1])
    _core.cross_attention(
        *(native_arrays.array(tensor) for tensor in (q, k, v, out, logsumexp)),
        **_options(keys, k.shape[1]),
    )
    return out, logsumexp


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
    """Compute the gradients of q, k and v; see `torch_path.backward`, which runs with dropout."""
    if dropout.p:
        return torch_path.backward(grad, q, k, v, out, logsumexp, keys, dropout)
    grad_q, grad_k, grad_v = (native_arrays.empty_like(tensor) for tensor in (q, k, v))
    _core.cross_attention_backward(
        *map(native_arrays.array, (grad, q, k, v, out, logsumexp, grad_q, grad_k, grad_v)),
        **_options(keys, k.shape[1]),
    )
    return grad_q, grad_k, grad_v


def _options(keys: KeyMask, num_keys: int) -> dict[str, Any]:
    lengths, mask = None, None
    if keys.lengths is not None:
        # Lengths below 0 or above m are clamped, as in the other backends.
        lengths = keys.lengths.clamp(0, num_keys).tolist()
    else:
        mask = keys.as_bool(num_keys)
    return {
        "key_lengths": lengths,
        "key_mask": None if mask is None else mask.contiguous().view(torch.uint8).numpy(),
        "threads": torch.get_num_threads(),
    }
