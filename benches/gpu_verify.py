"""Check every attention operation and every gradient against float64 plain PyTorch, on any device.

The plain formulation pads, rolls and partitions sample by sample, and is differentiated by
autograd. An output or gradient may be off by twice the error of that formulation in the same
precision, or by a floor of some units in the last place of the largest element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from plain_kernels import bias_index, from_windows, shift_mask, to_windows
from torch import Tensor

from fiber import kernels

Function = Callable[..., Tensor]

#: Relative to the largest element. Float32 is multiplied without TensorFloat-32.
FLOORS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
#: Least part of plain PyTorch's own error that counts as this many errors of ours.
TIMES_PLAIN = 2.0


@dataclass(frozen=True)
class Check:
    """One call: ours, plain PyTorch, and the tensors that both are given and differentiated in."""

    name: str
    ours: Function
    plain: Function
    shapes: tuple[tuple[int, ...], ...]


def window_check(
    name: str,
    map_size: tuple[int, int],
    window: int,
    shift: int,
    heads: int,
    sizes: list[list[int]] | None = None,
    head_width: int = 32,
) -> Check:
    """Window attention of two samples; `sizes`: of each sample's own map."""
    batch = 2

    def ours(qkv: Tensor, table: Tensor, bias: Tensor) -> Tensor:
        own = None if sizes is None else torch.tensor(sizes, device=qkv.device)
        return kernels.window_attention(
            qkv, table, bias, window_size=window, shift=shift, valid_sizes=own
        )

    def plain(qkv: Tensor, table: Tensor, bias: Tensor) -> Tensor:
        own = sizes or [list(map_size)] * batch
        samples = [
            plain_windows(each, table, bias, window, shift, (height, width))
            for each, (height, width) in zip(qkv, own, strict=True)
        ]
        return torch.stack(samples)

    shapes = (
        (batch, *map_size, 3, heads, head_width),
        ((2 * window - 1) ** 2, heads),
        (3, heads, head_width),
    )
    return Check(f"windows of {window}, {name}", ours, plain, shapes)


def plain_windows(
    qkv: Tensor, table: Tensor, bias: Tensor, window: int, shift: int, size: tuple[int, int]
) -> Tensor:
    """One sample (H, W, 3, h, d), of which the first `size` is its own map -> (H, W, h, d)."""
    height, width = (-(-side // window) * window for side in size)
    heads, head_width = qkv.shape[3:]
    padded = bias.expand(height, width, *bias.shape)
    place = torch.zeros(height, width, dtype=torch.bool, device=qkv.device)
    place[: size[0], : size[1]] = True
    own = torch.zeros_like(padded).clone()
    own[: size[0], : size[1]] = qkv[: size[0], : size[1]]
    padded = torch.where(place[:, :, None, None, None], own, padded)
    cut = to_windows(padded.flatten(2)[None], window, shift)
    query, key, value = cut.unflatten(-1, (3, heads, head_width)).permute(2, 0, 3, 1, 4)
    tokens = window**2
    index = bias_index(window).to(qkv.device)
    scores = query @ key.transpose(-1, -2) * head_width**-0.5
    scores = scores + table[index].view(tokens, tokens, heads).permute(2, 0, 1)
    mask = shift_mask((height, width), window, shift)
    if mask is not None:
        scores = scores + mask.to(scores)[:, None]
    read = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    whole = from_windows(read, size, window, shift)[0].unflatten(-1, (heads, head_width))
    out = torch.zeros_like(qkv[:, :, 0]).clone()
    out[: size[0], : size[1]] = whole
    return out


def plain_attention(query: Tensor, key: Tensor, value: Tensor, real: Tensor) -> Tensor:
    """(B, n, h, d) reads (B, m, h, d) where `real` (B, m); 0 where a sample has no real key."""
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~real[:, None, None], -1e4).softmax(-1)
    return ((weights * real[:, None, None]) @ value).transpose(1, 2)


def text_check(name: str, queries: int, keys: int, lengths: list[int], *, as_mask: bool) -> Check:
    """Image-to-text attention of three samples with heads of 32."""

    def real(q: Tensor) -> Tensor:
        found = torch.tensor(lengths, device=q.device)
        own = torch.arange(keys, device=q.device) < found[:, None]
        # A mask that is no prefix: the first token is not real.
        return own & (torch.arange(keys, device=q.device) > 0) if as_mask else own

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if as_mask:
            return kernels.image_to_text_attention(q, k, v, key_mask=real(q))
        return kernels.image_to_text_attention(q, k, v, torch.tensor(lengths, device=q.device))

    shapes = ((3, queries, 2, 32), (3, keys, 2, 32), (3, keys, 2, 32))
    return Check(
        f"image to text, {name}", ours, lambda q, k, v: plain_attention(q, k, v, real(q)), shapes
    )


def image_check(
    name: str, queries: int, map_size: tuple[int, int], sizes: list[list[int]] | None
) -> Check:
    """Text-to-image attention of two samples with heads of 64."""
    keys = map_size[0] * map_size[1]

    def real(q: Tensor) -> Tensor:
        own = torch.zeros(2, *map_size, dtype=torch.bool, device=q.device)
        for sample, (height, width) in enumerate(sizes or [list(map_size)] * 2):
            own[sample, :height, :width] = True
        return own.flatten(1)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own = None if sizes is None else torch.tensor(sizes, device=q.device)
        return kernels.text_to_image_attention(q, k, v, valid_sizes=own, map_size=map_size)

    shapes = ((2, queries, 2, 64), (2, keys, 2, 64), (2, keys, 2, 64))
    return Check(
        f"text to image, {name}", ours, lambda q, k, v: plain_attention(q, k, v, real(q)), shapes
    )


def dropout_check(queries: int, keys: int) -> Check:
    """Text-to-image attention with dropout, its weights read back through values of one-hot rows.

    Output and gradients must be those of plain PyTorch with exactly the weights that were dropped.
    """
    probability = 0.25

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(0)
        return kernels.text_to_image_attention(q, k, v, dropout_p=probability)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.no_grad():
            one_hot = torch.eye(keys, 64, device=q.device, dtype=torch.float32)
            one_hot = one_hot[None, :, None].expand(2, -1, 2, -1)
            kept = ours(q.float(), k.float(), one_hot)[..., :keys].transpose(1, 2) != 0
        part = kept.double().mean().item()
        spread = (probability * (1 - probability) / kept.numel()) ** 0.5
        if abs(part - (1 - probability)) > 5 * spread:
            raise AssertionError(f"dropout {probability} keeps {part:.3f} of the weights")
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return ((weights * kept / (1 - probability)) @ v).transpose(1, 2)

    shapes = ((2, queries, 2, 64), (2, keys, 2, 64), (2, keys, 2, 64))
    return Check("text to image, dropout", ours, plain, shapes)


def gate_check() -> Check:
    """The gated projection, and the gate's own gradient."""

    def plain(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
        return x + gate * (y @ weight.T + bias)

    shapes = ((2, 5, 48), (2, 5, 32), (48, 32), (48,), (1,))
    return Check("gated residual", kernels.gated_residual, plain, shapes)


def checks(dtype: torch.dtype, *, micro: bool) -> Iterator[Check]:
    """Everything in bfloat16; in the others what differs in kind.

    Args:
        dtype: of the inputs.
        micro: windows and maps that a CPU, or Triton's interpreter, ends in a moment.
    """
    if micro:
        yield window_check("odd map, shifted", (3, 5), 4, 1, 1, head_width=16)
        yield window_check("own maps", (3, 5), 4, 2, 1, [[3, 5], [2, 3]], head_width=16)
        yield text_check("lengths 5, 1 and 0", 4, 5, [5, 1, 0], as_mask=False)
        yield text_check("mask", 4, 5, [5, 2, 0], as_mask=True)
        yield image_check("own maps", 3, (2, 3), [[2, 3], [1, 2]])
        yield dropout_check(8, 16)
        yield gate_check()
        return
    yield window_check("odd map, shifted", (25, 42), 12, 6, 4)
    yield window_check("odd map, shifted", (20, 37), 18, 9, 2)
    yield text_check("lengths 40, 7 and 0", 600, 40, [40, 7, 0], as_mask=False)
    yield text_check("mask", 130, 40, [40, 7, 0], as_mask=True)
    if dtype == torch.bfloat16:
        yield window_check("not shifted", (24, 24), 12, 0, 4)
        yield window_check("shifted", (24, 24), 12, 6, 4)
        yield window_check("odd map, shifted", (10, 17), 7, 3, 2)
        yield window_check("own maps", (25, 42), 12, 6, 4, [[25, 42], [14, 31]])
        yield text_check("lengths 256, 64 and 1", 300, 256, [256, 64, 1], as_mask=False)
        yield image_check("whole maps", 40, (24, 24), None)
    yield image_check("own maps", 40, (50, 84), [[50, 84], [31, 17]])
    yield dropout_check(40, 48)
    yield gate_check()


def with_gradients(function: Function, inputs: list[Tensor], direction: Tensor) -> list[Tensor]:
    """Give the output and the gradient of every input."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, direction.to(out.dtype))]


def failures(check: Check, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Run one check; gives what is off, in words."""
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in check.shapes]
    inputs = [tensor.to(dtype).to(device) for tensor in exact]
    ours_shape = check.ours(*inputs).shape
    direction = torch.randn(ours_shape, generator=generator).to(dtype).to(device)
    expected = with_gradients(check.plain, [tensor.double() for tensor in inputs], direction)
    got = with_gradients(check.ours, inputs, direction)
    plain = with_gradients(check.plain, inputs, direction)
    off = []
    for number, (one, same, truth) in enumerate(zip(got, plain, expected, strict=True)):
        largest = truth.abs().max().clamp(min=1e-30)
        error, allowed = (
            ((each.double() - truth).abs().max() / largest).item() for each in (one, same)
        )
        bound = max(TIMES_PLAIN * allowed, FLOORS[dtype])
        if not error <= bound:
            what = "output" if number == 0 else f"gradient of input {number}"
            off.append(f"{check.name}, {dtype}, {what}: off by {error:.2g}, at most {bound:.2g}")
    return off


def changing(check: Check, device: torch.device, dtype: torch.dtype, times: int) -> list[str]:
    """Run forward and backward again and again; gives which results differ in any bit."""
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(each, generator=generator).to(dtype).to(device) for each in check.shapes]
    direction = torch.randn(check.ours(*inputs).shape, generator=generator).to(dtype).to(device)
    first = with_gradients(check.ours, inputs, direction)
    for number in range(1, times):
        again = with_gradients(check.ours, inputs, direction)
        for place, (one, other) in enumerate(zip(first, again, strict=True)):
            if not torch.equal(one, other):
                what = "output" if place == 0 else f"gradient of input {place}"
                return [f"{check.name}, {dtype}: run {number + 1} gives another {what}"]
    return []


def verify(
    device: torch.device, dtypes: list[torch.dtype], *, micro: bool, times: int
) -> list[str]:
    """Run every check in every dtype and, in the first one, each check's backward `times` times."""
    off = []
    for dtype in dtypes:
        for check in checks(dtype, micro=micro):
            found = failures(check, device, dtype)
            print(f"{'FAILED' if found else 'ok'}: {check.name}, {dtype}", flush=True)
            off += found
    changed = []
    for check in checks(dtypes[0], micro=micro):
        if check.name != "gated residual":
            changed += changing(check, device, dtypes[0], times)
    same = "NOT the same bits" if changed else "the same bits"
    print(f"{times} backward passes of every call: {same}", flush=True)
    return off + changed
