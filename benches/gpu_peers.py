"""Attention calls on a GPU in every available formulation: fiber's and its peers'.

Peers: the published eager formulation (`plain_kernels.py`); each backend of
`scaled_dot_product_attention`, in the best layout that it supports: windows and heads in one
dimension, so that the shift mask exists once instead of per sample, and keys are not repeated for
windows; compiled FlexAttention, which reads the bias table in its score function.

All sides hold the bias table in float32, as in training, and the peers round it. As in
`plain_kernels.py`, the projections of the peers' windows are given, and the block's input and
output are moved into windows and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial

import torch
import torch.nn.functional as F
from bench_kernels import Outputs
from gpu_shapes import Shape
from plain_kernels import (
    bias_index,
    eager_image_to_text,
    eager_text_to_image,
    eager_windows,
    from_windows,
    shift_mask,
    to_windows,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from fiber import kernels

Side = Callable[[], Outputs]

OURS = "fiber"
BACKENDS = {
    "sdpa math": SDPBackend.MATH,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
}
FLEX = "flex attention"
SIDES = (OURS, "eager", *BACKENDS, FLEX)


@cache
def _flex() -> Callable[..., Tensor]:
    """FlexAttention as it is meant to be used, compiled for one shape after the other."""
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def _flex_attend(inputs: Iterable[Tensor], score_mod: Callable[..., Tensor] | None) -> Tensor:
    """Queries, keys and values (B, h, tokens, d); off the GPU not compiled, and without gradients.

    FlexAttention looks at whether its inputs want gradients, not at whether any are taken.
    """
    query, key, value = (each if torch.is_grad_enabled() else each.detach() for each in inputs)
    attend = _flex() if query.is_cuda else flex_attention
    read = attend(query, key, value, score_mod=score_mod)
    assert isinstance(read, Tensor)
    return read


def sides(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Side]:
    """Return a function per side of a call, all on the same values.

    The first output of every side holds the same numbers as ours, in an order of (B, tokens, C).
    """
    # Recompilations for other shapes count against a limit, after which nothing is compiled.
    torch.compiler.reset()
    make = _window_sides if shape.operation == "windows" else _cross_sides
    return make(shape, device, dtype)


def _window_sides(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Side]:
    batch, (height, width), heads = shape.batch, shape.map_size, shape.heads
    window, shift, channels = shape.window, shape.shift, shape.heads * shape.head_width
    random = partial(_random, device=device, dtype=dtype)
    packed = random(1, batch, height, width, 3, heads, shape.head_width)
    tokens = random(2, batch, height, width, channels)
    direction = random(3, batch, height, width, channels)
    table = random(4, (2 * window - 1) ** 2, heads, kept=torch.float32)
    # fiber takes padded positions from its bias, the peers from the projection: both are zero here.
    padding = torch.zeros(3, heads, shape.head_width, device=device, dtype=dtype)
    windows = to_windows(packed.flatten(3), window, shift)
    moved = random(5, *windows.shape[:2], channels)
    mask = shift_mask((height, width), window, shift)
    index = bias_index(window).to(device)
    mask = None if mask is None else mask.to(device, dtype)
    for leaf in (packed, tokens, table, padding, windows):
        leaf.requires_grad_()

    def ours() -> Outputs:
        out = kernels.window_attention(packed, table, padding, window_size=window, shift=shift)
        return Outputs([out], [direction.view_as(out)], [packed, table, padding])

    def peer(attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]) -> Side:
        def run() -> Outputs:
            cut = to_windows(tokens, window, shift)
            read = attend(windows, table, index, mask)
            out = from_windows(read, (height, width), window, shift)
            return Outputs([out, cut], [direction, moved], [windows, table, tokens])

        return run

    eager = peer(lambda qkv, table, *rest: eager_windows(qkv, table.to(dtype), *rest))
    found = {OURS: ours, "eager": eager}
    for name, backend in BACKENDS.items():
        found[name] = peer(partial(_sdpa_windows, backend=backend, batch=batch))
    found[FLEX] = peer(_flex_windows)
    return found


def _sdpa_windows(
    qkv: Tensor, table: Tensor, index: Tensor, mask: Tensor | None, *, backend, batch: int
) -> Tensor:
    """(B nW, N, 3 C) -> (B nW, N, C)."""
    windows, tokens, width = qkv.shape
    heads = table.shape[1]
    scores = table.to(qkv.dtype)[index].view(tokens, tokens, heads).permute(2, 0, 1)[None]
    split = qkv.view(windows, tokens, 3, heads, -1)
    if mask is None:
        # Without a mask all windows share one bias, and nothing is moved.
        query, key, value = split.permute(2, 0, 3, 1, 4)
    else:
        # (B nW, N, 3, h, d) -> 3 x (B, nW h, N, d)
        folded = split.unflatten(0, (batch, -1)).permute(3, 0, 1, 4, 2, 5)
        query, key, value = folded.flatten(2, 3)
        scores = (scores + mask[:, None]).flatten(0, 1)[None]
    with sdpa_kernel(backend):
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=scores)
    read = read.reshape(windows, heads, tokens, -1)
    return read.transpose(1, 2).reshape(windows, tokens, width // 3)


def _flex_windows(qkv: Tensor, table: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
    """(B nW, N, 3 C) -> (B nW, N, C)."""
    windows, tokens, width = qkv.shape
    heads = table.shape[1]
    query, key, value = qkv.view(windows, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    rows = index.view(tokens, tokens)

    def biased(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + table[rows[q, k], h]

    def masked(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        assert mask is not None
        return biased(score, b, h, q, k) + mask[b % len(mask), q, k]

    read = _flex_attend((query, key, value), biased if mask is None else masked)
    return read.transpose(1, 2).reshape(windows, tokens, width // 3)


def _cross_sides(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Side]:
    batch, heads, head_width = shape.batch, shape.heads, shape.head_width
    image_tokens, to_text = (
        shape.map_size[0] * shape.map_size[1],
        shape.operation != "text to image",
    )
    queries = image_tokens if shape.operation == "image to text" else shape.text_tokens
    num_keys = shape.text_tokens if to_text else image_tokens
    random = partial(_random, device=device, dtype=dtype)
    query, direction = (random(seed, batch, queries, heads, head_width) for seed in (1, 2))
    key, value = (random(seed, batch, num_keys, heads, head_width) for seed in (3, 4))
    lengths = torch.full((batch,), shape.real_tokens, device=device)
    real = torch.arange(num_keys, device=device) < lengths[:, None]
    leaves = [leaf.requires_grad_() for leaf in (query, key, value)]

    def ours() -> Outputs:
        if to_text:
            out = kernels.image_to_text_attention(query, key, value, lengths)
        else:
            out = kernels.text_to_image_attention(query, key, value)
        return Outputs([out], [direction], leaves)

    def peer(attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]) -> Side:
        """Queries, keys and values (B, h, tokens, d), and real keys (B, L)."""

        def run() -> Outputs:
            heads_first = (leaf.transpose(1, 2) for leaf in leaves)
            out = attend(*heads_first, real if to_text else None).transpose(1, 2)
            return Outputs([out], [direction], leaves)

        return run

    found = {OURS: ours, "eager": _eager_cross(shape, leaves, direction, real)}
    for name, backend in BACKENDS.items():
        found[name] = peer(partial(_sdpa_cross, backend=backend))
    found[FLEX] = peer(partial(_flex_cross, lengths=lengths))
    return found


def _eager_cross(shape: Shape, leaves: list[Tensor], direction: Tensor, real: Tensor) -> Side:
    """As published: image tokens read the text window by window."""
    query, key, value = leaves
    if shape.operation == "text to image":
        return lambda: Outputs(
            [eager_text_to_image(query, key, value)], [direction.flatten(2)], leaves
        )
    added = torch.zeros_like(real, dtype=query.dtype).masked_fill(~real, -10000.0)
    if shape.operation == "text":
        return lambda: Outputs(
            [eager_image_to_text(query, key, value, added)], [direction.flatten(2)], leaves
        )
    size = shape.map_size

    def cut(tokens: Tensor) -> Tensor:
        return to_windows(tokens.detach().reshape(shape.batch, *size, -1), shape.window, 0)

    windows = cut(query).unflatten(-1, query.shape[2:]).requires_grad_()
    cut_direction = cut(direction)

    def run() -> Outputs:
        out = eager_image_to_text(windows, key, value, added)
        return Outputs([out], [cut_direction], [windows, key, value])

    return run


def _sdpa_cross(
    query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, *, backend
) -> Tensor:
    mask = None if real is None else real[:, None, None].expand(-1, -1, query.shape[2], -1)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _flex_cross(
    query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, *, lengths: Tensor
) -> Tensor:
    def own(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.where(k < lengths[b], score, -torch.inf)

    return _flex_attend((query, key, value), None if real is None else own)


def comparable(shape: Shape, side: str, out: Tensor) -> Tensor:
    """Bring a side's first output into the order (B, tokens, C)."""
    out = out.detach()
    if shape.operation == "image to text" and side == "eager":
        out = from_windows(out, shape.map_size, shape.window, 0)
    return out.reshape(shape.batch, -1, shape.heads * shape.head_width)


def _random(
    seed: int,
    *size: int,
    device: torch.device,
    dtype: torch.dtype,
    kept: torch.dtype | None = None,
) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(size, device=device, generator=generator).to(kept or dtype)
