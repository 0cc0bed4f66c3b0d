"""Window attention for CPUs, in Rust. Arguments are checked in `op.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiber import _core

from ..runtime import native_arrays
from ..runtime.native_arrays import array, empty_like, output_array
from .window_spec import WindowSpec


def refusal(qkv: Tensor, window_size: int) -> str | None:
    """Return why a call is not supported, or None if it is."""
    return native_arrays.refusal(qkv)


def forward(qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor, spec: WindowSpec) -> Tensor:
    """Compute the output [B, H, W, h, d]; see `op.window_attention`."""
    out = qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])
    inputs = [array(tensor) for tensor in (qkv, bias_table, qkv_bias)]
    _core.window_attention(inputs, output_array(out), **_options(spec))
    return out


def backward(
    grad: Tensor, qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor, spec: WindowSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of qkv, bias_table and qkv_bias."""
    tensors = (qkv, bias_table, qkv_bias)
    grads = [empty_like(tensor) for tensor in tensors]
    inputs = [array(tensor) for tensor in tensors]
    outputs = [output_array(tensor) for tensor in grads]
    _core.window_attention_backward(array(grad), inputs, outputs, **_options(spec))
    grad_qkv, grad_table, grad_bias = (
        each.to(tensor.dtype) for each, tensor in zip(grads, tensors, strict=True)
    )
    return grad_qkv, grad_table, grad_bias


def _options(spec: WindowSpec) -> dict[str, Any]:
    sizes = None if spec.valid_sizes is None else spec.valid_sizes.tolist()
    return {
        "window": spec.window_size,
        "shift": spec.shift,
        "sizes": None if sizes is None else [tuple(size) for size in sizes],
        "threads": torch.get_num_threads(),
    }
