"""The operations as torch knows them: registered, with shapes for tracing and gradients.

`torch.compile` and `torch.export` take each as one call. Which code runs is decided in that call,
by `dispatch.triton_module`. A backward pass is an operation of its own, so that it is compiled too.
Names under `torch.ops.fiber` are private; `operations.py` is the door.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference, reference_windows
from .dispatch import atomics, triton_module

_WINDOW_ARGUMENTS = "int window_size, int shift, Tensor? valid_sizes"
_CROSS_ARGUMENTS = (
    "Tensor? key_lengths, Tensor? key_mask, Tensor? valid_sizes, int[]? map_size,"
    " float dropout_p, Tensor? seed"
)


@torch.library.custom_op(
    "fiber::window_attention",
    mutates_args=(),
    schema=f"(Tensor qkv, Tensor bias_table, Tensor qkv_bias, {_WINDOW_ARGUMENTS}) -> Tensor",
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
    triton = triton_module("window_plans", qkv, window_size)
    if triton is not None:
        return triton.forward(*arguments)
    return reference_windows.window_attention(*arguments)


@window_attention.register_fake
def _(qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])


@torch.library.custom_op(
    "fiber::window_attention_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor qkv, Tensor bias_table, Tensor qkv_bias,"
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
    triton = triton_module("window_plans", qkv, window_size)
    if triton is not None:
        return triton.backward(*inputs, *arguments, atomic_bias=atomics())
    return reference_windows.window_attention_backward(*inputs, *arguments)


@window_attention_backward.register_fake
def _(
    grad: Tensor, qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        qkv.new_empty(qkv.shape),
        torch.empty_like(bias_table),
        qkv_bias.new_empty(qkv_bias.shape),
    )


def _window_context(ctx: Any, inputs: Any, output: Tensor) -> None:
    qkv, bias_table, qkv_bias, ctx.window_size, ctx.shift, valid_sizes = inputs
    ctx.save_for_backward(qkv, bias_table, qkv_bias, valid_sizes)


def _window_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, valid_sizes = ctx.saved_tensors
    found = window_attention_backward(grad, *tensors, ctx.window_size, ctx.shift, valid_sizes)
    return *found, None, None, None


window_attention.register_autograd(_window_gradients, setup_context=_window_context)


@torch.library.custom_op(
    "fiber::cross_attention",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {_CROSS_ARGUMENTS}) -> (Tensor, Tensor)",
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
    triton = triton_module("cross_attention", q, k)
    if triton is not None:
        return triton.forward(
            q, k, v, key_lengths, valid_sizes, map_size, dropout_p, seed, key_mask
        )
    mask = _mask(k, key_lengths, key_mask, valid_sizes, map_size)
    return reference.cross_attention(q, k, v, mask, dropout_p, seed)


@cross_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    batch, queries, heads = q.shape[:3]
    return q.new_empty(q.shape), q.new_empty(batch, heads, queries, dtype=wide)


@torch.library.custom_op(
    "fiber::cross_attention_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp,"
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
    triton = triton_module("cross_attention", q, k)
    if triton is not None:
        saved = (q, k, v, out, logsumexp)
        return triton.backward(
            grad, *saved, key_lengths, valid_sizes, map_size, dropout_p, seed, key_mask
        )
    mask = _mask(k, key_lengths, key_mask, valid_sizes, map_size)
    return reference.cross_attention_backward(grad, q, k, v, out, logsumexp, mask, dropout_p, seed)


@cross_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _cross_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, key_lengths, key_mask, valid_sizes, ctx.map_size, ctx.dropout_p, seed = inputs
    ctx.save_for_backward(q, k, v, *output, key_lengths, key_mask, valid_sizes, seed)


def _cross_gradients(
    ctx: Any, grad: Tensor, of_logsumexp: Tensor | None
) -> tuple[Tensor | None, ...]:
    *tensors, key_lengths, key_mask, valid_sizes, seed = ctx.saved_tensors
    found = cross_attention_backward(
        grad, *tensors, key_lengths, key_mask, valid_sizes, ctx.map_size, ctx.dropout_p, seed
    )
    return *found, None, None, None, None, None, None


cross_attention.register_autograd(_cross_gradients, setup_context=_cross_context)


def _mask(
    k: Tensor,
    key_lengths: Tensor | None,
    key_mask: Tensor | None,
    valid_sizes: Tensor | None,
    map_size: list[int] | None,
) -> Tensor | None:
    if key_mask is not None:
        return key_mask
    size = (map_size[0], map_size[1]) if map_size is not None else None
    return reference.key_mask_of(key_lengths, valid_sizes, size, k.shape[1])
