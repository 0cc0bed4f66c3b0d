"""The operations as torch knows them: registered, with shapes for tracing and gradients.

`torch.compile` and `torch.export` take each as one call. Which code runs is decided in that call,
by `dispatch.kernel_module`. A backward pass is an operation of its own, so that it is compiled too.
Names under `torch.ops.fiber` are private; `operations.py` is the door.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import Parameter

from . import reference, reference_windows
from .dispatch import Backend, atomics, kernel_module

_WINDOWS: Mapping[Backend, str] = {"triton": "window_plans", "native": "native_windows"}
_CROSS: Mapping[Backend, str] = {"triton": "cross_attention", "native": "native_cross"}
_WINDOW_ARGUMENTS = "int window_size, int shift, Tensor? valid_sizes"
_CROSS_ARGUMENTS = (
    "Tensor? key_lengths, Tensor? key_mask, Tensor? valid_sizes, int[]? map_size,"
    " float dropout_p, Tensor? seed"
)

# `torch.library.custom_op` would wrap every call in several layers of Python, which take as long as
# the attention of a small map on a CPU.
_LIBRARY = torch.library.Library("fiber", "FRAGMENT")
#: What each operation runs.
_BODIES: dict[OpOverload, Callable[..., Any]] = {}


def _operation(schema: str) -> Callable[[Callable[..., Any]], OpOverload]:
    """Register a function that runs on every device and has no gradients by itself."""

    def register(function: Callable[..., Any]) -> OpOverload:
        name = function.__name__
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        operation = getattr(torch.ops.fiber, name).default
        _BODIES[operation] = function
        return operation

    return register


def _below_autograd(operation: OpOverload, arguments: tuple[Any, ...]) -> Any:
    """Run an operation whose gradients are taken care of.

    Where nobody watches the calls (fake tensors, tracing) its function is called at once: the way
    back to it through torch takes as long as a small attention.
    """
    watched = torch._C._len_torch_dispatch_stack() > 0 or any(
        isinstance(each, Tensor) and type(each) not in (Tensor, Parameter) for each in arguments
    )
    if not watched:
        return _BODIES[operation](*arguments)
    with torch._C._AutoDispatchBelowAutograd():  # As `custom_op` does it.
        return operation(*arguments)


def _differentiate(operation: OpOverload, function: type[Function]) -> None:
    """Register the gradients of an operation."""

    def run(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(
            isinstance(each, Tensor) and each.requires_grad for each in arguments
        ):
            return function.apply(*arguments)
        return _below_autograd(operation, arguments)

    _LIBRARY.impl(operation._schema.name.split("::")[1], run, "Autograd")


@_operation(
    f"(Tensor qkv, Tensor bias_table, Tensor qkv_bias, {_WINDOW_ARGUMENTS}) -> Tensor",
)
def window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None,
) -> Tensor:
    """What is read."""
    arguments = (qkv, bias_table, qkv_bias, window_size, shift, valid_sizes)
    module = kernel_module(_WINDOWS, qkv, window_size)
    if module is not None:
        return module.forward(*arguments)
    return reference_windows.window_attention(*arguments)


@torch.library.register_fake("fiber::window_attention", lib=_LIBRARY)
def _(qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])


@_operation(
    "(Tensor grad, Tensor qkv, Tensor bias_table, Tensor qkv_bias,"
    f" {_WINDOW_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
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
    """Gradients of qkv, bias_table and qkv_bias."""
    inputs, arguments = (grad, qkv, bias_table, qkv_bias), (window_size, shift, valid_sizes)
    module = kernel_module(_WINDOWS, qkv, window_size)
    if module is not None:
        return module.backward(*inputs, *arguments, atomic_bias=atomics())
    return reference_windows.window_attention_backward(*inputs, *arguments)


@torch.library.register_fake("fiber::window_attention_backward", lib=_LIBRARY)
def _(
    grad: Tensor, qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        qkv.new_empty(qkv.shape),
        torch.empty_like(bias_table),
        qkv_bias.new_empty(qkv_bias.shape),
    )


class _WindowAttention(Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        qkv, bias_table, qkv_bias, ctx.window_size, ctx.shift, valid_sizes = arguments
        ctx.save_for_backward(qkv, bias_table, qkv_bias, valid_sizes)
        return _below_autograd(window_attention, arguments)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        *tensors, valid_sizes = ctx.saved_tensors
        found = _below_autograd(
            window_attention_backward,
            (*grads, *tensors, ctx.window_size, ctx.shift, valid_sizes),
        )
        return *found, None, None, None


_differentiate(window_attention, _WindowAttention)


@_operation(
    f"(Tensor q, Tensor k, Tensor v, {_CROSS_ARGUMENTS}) -> (Tensor, Tensor)",
)
def cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None,
    key_mask: Tensor | None,
    valid_sizes: Tensor | None,
    map_size: list[int] | None,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """What is read, and the base-2 logarithms of the sums of exponentials (B, h, n)."""
    module = kernel_module(_CROSS, q, k)
    if module is not None:
        return module.forward(
            q, k, v, key_lengths, valid_sizes, map_size, dropout_p, seed, key_mask
        )
    mask = reference.mask_of(k, key_lengths, key_mask, valid_sizes, map_size)
    return reference.cross_attention(q, k, v, mask, dropout_p, seed)


@torch.library.register_fake("fiber::cross_attention", lib=_LIBRARY)
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    batch, queries, heads = q.shape[:3]
    return q.new_empty(q.shape), q.new_empty(batch, heads, queries, dtype=wide)


@_operation(
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp,"
    f" {_CROSS_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
)
def cross_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    key_lengths: Tensor | None,
    key_mask: Tensor | None,
    valid_sizes: Tensor | None,
    map_size: list[int] | None,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    module = kernel_module(_CROSS, q, k)
    if module is not None:
        saved = (q, k, v, out, logsumexp)
        return module.backward(
            grad, *saved, key_lengths, valid_sizes, map_size, dropout_p, seed, key_mask
        )
    mask = reference.mask_of(k, key_lengths, key_mask, valid_sizes, map_size)
    return reference.cross_attention_backward(grad, q, k, v, out, logsumexp, mask, dropout_p, seed)


@torch.library.register_fake("fiber::cross_attention_backward", lib=_LIBRARY)
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


class _CrossAttention(Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        output = _below_autograd(cross_attention, arguments)
        q, k, v, key_lengths, key_mask, valid_sizes, ctx.map_size, ctx.dropout_p, seed = arguments
        ctx.save_for_backward(q, k, v, *output, key_lengths, key_mask, valid_sizes, seed)
        ctx.mark_non_differentiable(output[1])
        # No zeros are made for the sums, which nobody asks gradients of.
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return (None,) * 9
        *tensors, key_lengths, key_mask, valid_sizes, seed = ctx.saved_tensors
        options = (key_lengths, key_mask, valid_sizes, ctx.map_size, ctx.dropout_p, seed)
        found = _below_autograd(cross_attention_backward, (grads[0], *tensors, *options))
        return *found, None, None, None, None, None, None


_differentiate(cross_attention, _CrossAttention)
