"""Cross attention by the extension, on a CPU; arguments are those of `operations.py`, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fiber import _core

from ..runtime import native_arrays
from . import torch_path


def refusal(q: Tensor, k: Tensor) -> str | None:
    """Say why a call is not taken; None if it is."""
    return native_arrays.refusal(q, q.shape[3])


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None,
    valid_sizes: Tensor | None,
    map_size: Sequence[int] | None,
    dropout_p: float,
    seed: Tensor | None,
    key_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Give what is read, (B, n, h, d), and the base-2 logarithms of the sums of exponentials."""
    if dropout_p:
        mask = torch_path.mask_of(k, key_lengths, key_mask, valid_sizes, map_size)
        return torch_path.cross_attention(q, k, v, mask, dropout_p, seed)
    out = native_arrays.empty_like(q)
    sums = q.new_empty(q.shape[0], q.shape[2], q.shape[1])
    _core.cross_attention(
        *(native_arrays.array(tensor) for tensor in (q, k, v, out, sums)),
        **_options(k, key_lengths, key_mask, valid_sizes, map_size),
    )
    return out, sums


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    key_lengths: Tensor | None,
    valid_sizes: Tensor | None,
    map_size: Sequence[int] | None,
    dropout_p: float,
    seed: Tensor | None,
    key_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the gradients of q, k and v."""
    if dropout_p:
        mask = torch_path.mask_of(k, key_lengths, key_mask, valid_sizes, map_size)
        return torch_path.cross_attention_backward(
            grad, q, k, v, out, logsumexp, mask, dropout_p, seed
        )
    of_q, of_k, of_v = (native_arrays.empty_like(tensor) for tensor in (q, k, v))
    _core.cross_attention_backward(
        *(
            native_arrays.array(tensor)
            for tensor in (grad, q, k, v, out, logsumexp, of_q, of_k, of_v)
        ),
        **_options(k, key_lengths, key_mask, valid_sizes, map_size),
    )
    return of_q, of_k, of_v


def _options(
    k: Tensor,
    key_lengths: Tensor | None,
    key_mask: Tensor | None,
    valid_sizes: Tensor | None,
    map_size: Sequence[int] | None,
) -> dict[str, Any]:
    lengths, mask = None, None
    if key_lengths is not None:
        # No length is below zero or beyond the keys, whatever was given.
        lengths = key_lengths.clamp(0, k.shape[1]).tolist()
    elif key_mask is not None or valid_sizes is not None:
        mask = torch_path.mask_of(k, None, key_mask, valid_sizes, map_size)
    return {
        "key_lengths": lengths,
        "key_mask": None if mask is None else mask.contiguous().view(torch.uint8).numpy(),
        "threads": torch.get_num_threads(),
    }
