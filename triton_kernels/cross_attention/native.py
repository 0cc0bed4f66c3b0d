"""Cross-attention for CPUs, in Rust. Arguments are checked in `op.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiber import _core

from ..runtime import native_arrays
from ..runtime.native_arrays import array, empty_like, output_array
from . import torch_path
from .key_mask import Dropout, KeyMask


def refusal(q: Tensor, k: Tensor) -> str | None:
    """Return why a call is not supported, or None if it is."""
    return native_arrays.refusal(q)


def forward(
    q: Tensor, k: Tensor, v: Tensor, keys: KeyMask, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    """Compute the output and the logsumexp, using `torch_path.forward` if there is dropout."""
    if dropout.p:
        return torch_path.forward(q, k, v, keys, dropout)
    out, logsumexp = empty_like(q), q.new_empty(q.shape[0], q.shape[2], q.shape[1])
    inputs = [array(tensor) for tensor in (q, k, v)]
    outputs = output_array(out), output_array(logsumexp)
    _core.cross_attention(inputs, *outputs, **_options(keys, k.shape[1]))
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
    """Compute the gradients of q, k and v, using `torch_path.backward` if there is dropout."""
    if dropout.p:
        return torch_path.backward(grad, q, k, v, out, logsumexp, keys, dropout)
    grads = empty_like(q), empty_like(k), empty_like(v)
    inputs = [array(tensor) for tensor in (q, k, v)]
    outputs = [output_array(tensor) for tensor in grads]
    _core.cross_attention_backward(
        array(grad), inputs, array(out), array(logsumexp), outputs, **_options(keys, k.shape[1])
    )
    return grads


def _options(keys: KeyMask, num_keys: int) -> dict[str, Any]:
    lengths, mask = None, None
    if keys.lengths is not None:
        # As in the other backends, lengths are clamped to [0, m].
        lengths = keys.lengths.clamp(0, num_keys).tolist()
    else:
        mask = keys.as_bool(num_keys)
    return {
        "key_lengths": lengths,
        "key_mask": None if mask is None else mask.contiguous().view(torch.uint8).numpy(),
        "threads": torch.get_num_threads(),
    }
