"""Window attention by the extension, on a CPU; arguments are those of `operations.py`, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiber import _core

from ..runtime import native_arrays


def refusal(qkv: Tensor, window_size: int) -> str | None:
    """Say why a call is not taken; None if it is."""
    return native_arrays.refusal(qkv, qkv.shape[5])


def forward(
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None,
) -> Tensor:
    """Give what is read, (B, H, W, h, d)."""
    out = qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])
    _core.window_attention(
        *(native_arrays.array(tensor) for tensor in (qkv, bias_table, qkv_bias, out)),
        **_options(window_size, shift, valid_sizes),
    )
    return out


def backward(
    grad: Tensor,
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None,
    *,
    atomic_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the gradients of qkv, bias_table and qkv_bias; no sum is made with atomics here."""
    inputs = (qkv, bias_table, qkv_bias)
    found = [native_arrays.empty_like(tensor) for tensor in inputs]
    _core.window_attention_backward(
        *(native_arrays.array(tensor) for tensor in (grad, *inputs, *found)),
        **_options(window_size, shift, valid_sizes),
    )
    of_qkv, of_table, of_bias = (
        each.to(tensor.dtype) for each, tensor in zip(found, inputs, strict=True)
    )
    return of_qkv, of_table, of_bias


def _options(window_size: int, shift: int, valid_sizes: Tensor | None) -> dict[str, Any]:
    return {
        "window": window_size,
        "shift": shift,
        "sizes": None if valid_sizes is None else [tuple(size) for size in valid_sizes.tolist()],
        "threads": torch.get_num_threads(),
    }
