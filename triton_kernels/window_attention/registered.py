"""Registration of window attention with `torch.library`: forward, backward and output shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..runtime.dispatch import kernel_module
from ..runtime.registration import LIBRARY, below_autograd, differentiate, operation
from .window_spec import WindowSpec

_OPTIONS = "int window_size, int shift, Tensor? valid_sizes"


@operation(f"(Tensor qkv, Tensor bias_table, Tensor qkv_bias, {_OPTIONS}) -> Tensor")
def window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None,
) -> Tensor:
    """Compute the output [B, H, W, h, d]; see `op.window_attention`."""
    module = kernel_module("window_attention", qkv, window_size)
    return module.forward(qkv, bias_table, qkv_bias, WindowSpec(window_size, shift, valid_sizes))


@torch.library.register_fake("fiber::window_attention", lib=LIBRARY)
def _(qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])


@operation(
    "(Tensor grad, Tensor qkv, Tensor bias_table, Tensor qkv_bias,"
    f" {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
)
def window_attention_backward(
    grad: Tensor,
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of qkv, bias_table and qkv_bias."""
    spec = WindowSpec(window_size, shift, valid_sizes)
    module = kernel_module("window_attention", qkv, window_size)
    return module.backward(grad, qkv, bias_table, qkv_bias, spec)


@torch.library.register_fake("fiber::window_attention_backward", lib=LIBRARY)
def _(
    grad: Tensor, qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    table = torch.empty_like(bias_table)
    return qkv.new_empty(qkv.shape), table, qkv_bias.new_empty(qkv_bias.shape)


class _WindowAttention(Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        qkv, bias_table, qkv_bias, ctx.window_size, ctx.shift, valid_sizes = arguments
        ctx.save_for_backward(qkv, bias_table, qkv_bias, valid_sizes)
        return below_autograd(window_attention, arguments)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        *tensors, valid_sizes = ctx.saved_tensors
        arguments = (*grads, *tensors, ctx.window_size, ctx.shift, valid_sizes)
        return *below_autograd(window_attention_backward, arguments), None, None, None


differentiate(window_attention, _WindowAttention)
