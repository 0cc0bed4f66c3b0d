"""Window attention on a CPU by the extension. Arguments are checked in `op.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiber import _core

from ..runtime import native_arrays
from .window_spec import WindowSpec


def refusal(qkv: Tensor, window_size: int) -> str | None:
    """Return why the extension does not take a call; None if it does."""
    return native_arrays.refusal(qkv, qkv.shape[5])


def forward(
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    spec: WindowSpec,
) -> Tensor:
    """Compute the output, [B, H, W, h, d]; see `op.window_attention`."""
    out = qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])
    _core.window_attention(
        *(native_arrays.array(tensor) for tensor in (qkv, bias_table, qkv_bias, out)),
        **_options(spec),
    )
    return out


def backward(
    grad: Tensor,
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    spec: WindowSpec,
    *,
    atomic_bias: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of qkv, bias_table and qkv_bias; `atomic_bias` has no effect here."""
    inputs = (qkv, bias_table, qkv_bias)
    gradients = [native_arrays.empty_like(tensor) for tensor in inputs]
    _core.window_attention_backward(
        *(native_arrays.array(tensor) for tensor in (grad, *inputs, *gradients)),
        **_options(spec),
    )
    grad_qkv, grad_table, grad_bias = (
        each.to(tensor.dtype) for each, tensor in zip(gradients, inputs, strict=True)
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
