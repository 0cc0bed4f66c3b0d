"""Attention operations on a CPU, forward and backward.

Command: python benches/bench_kernels.py [--check] [--rounds N]
Peers: the published eager formulation, and one with `scaled_dot_product_attention`
(`plain_kernels.py`). Outputs and gradients of all three are compared before anything is timed.
Calls: those of the base model at 384 pixels with batch 1 and 8, and for an image of 800 x 1344
pixels, and those of preset small; float32. All text keys are real tokens, so fiber has no padding
to skip. One row per call and side.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import geometric_mean, median
from typing import Any, NamedTuple

import torch
from plain_kernels import (
    bias_index,
    eager_image_to_text,
    eager_text_to_image,
    eager_windows,
    from_windows,
    sdpa_image_to_text,
    sdpa_text_to_image,
    sdpa_windows,
    shift_mask,
    to_windows,
)
from rows import interleave, refuse_debug_build, report
from torch import Tensor

from fiber import kernels

SIDES = ("fiber", "eager", "sdpa")
#: Single calls have a gate if the eager formulation takes longer than this, in milliseconds.
JUDGED_ABOVE = 1.0
#: Required ratio of a peer's time to fiber's: of a single call, and of the geometric mean.
EAGER_CALL, EAGER_MEAN = 0.95, 1.3
SDPA_MEAN = {"windows": 1.0, "image to text": 1.3, "text to image": 1.0}


class Outputs(NamedTuple):
    """Outputs of a side, their gradients, and the inputs to differentiate."""

    #: Output tensors.
    outputs: list[Tensor]
    #: Gradients of the outputs.
    directions: list[Tensor]
    #: Tensors to differentiate with respect to.
    inputs: list[Tensor]


@dataclass(frozen=True)
class Call:
    """One call of one operation, in three formulations."""

    operation: str
    name: str
    #: Forward function by side.
    sides: dict[str, Callable[[], Outputs]]
    #: Converts outputs and gradients of a peer to fiber's layout.
    like_ours: Callable[[list[Tensor]], list[Tensor]]


def window_call(
    name: str,
    batch: int,
    map_size: tuple[int, int],
    heads: int,
    shift: int,
    *,
    window: int = 12,
    head_width: int = 32,
) -> Call:
    """Windows of a map."""
    channels = head_width * heads
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, *map_size, 3 * channels, generator=generator)
    # fiber takes padded positions from its bias, the peers from the projection: both are zero here.
    table = torch.randn((2 * window - 1) ** 2, heads, generator=generator).requires_grad_()
    padding = torch.zeros(3, heads, head_width, requires_grad=True)
    tokens = torch.randn(batch, *map_size, channels, generator=generator).requires_grad_()
    direction = torch.randn(batch, *map_size, channels, generator=generator)
    windows = to_windows(qkv, window, shift).requires_grad_()
    moved = torch.randn_like(windows[..., :channels])
    index, mask = bias_index(window), shift_mask(map_size, window, shift)
    packed = qkv.view(batch, *map_size, 3, heads, head_width).requires_grad_()

    def ours() -> Outputs:
        out = kernels.window_attention(packed, table, padding, window_size=window, shift=shift)
        return Outputs([out], [direction.view_as(out)], [packed, table, padding])

    def peer(attend: Callable[..., Tensor]) -> Callable[[], Outputs]:
        def run() -> Outputs:
            cut = to_windows(tokens, window, shift)
            out = from_windows(attend(windows, table, index, mask), map_size, window, shift)
            return Outputs([out, cut], [direction, moved], [windows, table, tokens])

        return run

    def like_ours(values: list[Tensor]) -> list[Tensor]:
        out, _, of_windows, of_table, _ = values
        shape = (batch, *map_size)
        return [
            out.view(*shape, heads, head_width),
            from_windows(of_windows, map_size, window, shift).view(*shape, 3, heads, head_width),
            of_table,
        ]

    sides = {"fiber": ours, "eager": peer(eager_windows), "sdpa": peer(sdpa_windows)}
    return Call("windows", name, sides, like_ours)


def cross_call(
    name: str,
    batch: int,
    map_size: tuple[int, int],
    heads: int,
    text_tokens: int,
    *,
    to_text: bool,
    head_width: int,
    window: int = 12,
) -> Call:
    """Image-to-text attention, or text-to-image."""
    generator = torch.Generator().manual_seed(0)
    image_tokens = map_size[0] * map_size[1]
    lengths = (image_tokens, text_tokens) if to_text else (text_tokens, image_tokens)
    query, key, value, direction = (
        torch.randn(batch, tokens, heads, head_width, generator=generator)
        for tokens in (lengths[0], lengths[1], lengths[1], lengths[0])
    )
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    real = torch.full((batch,), text_tokens)
    cut, cut_direction = query, direction.flatten(2)
    if to_text:
        # The published code attends in windows, padded positions included.
        cut = to_windows(query.detach().view(batch, *map_size, -1), window, 0)
        cut = cut.unflatten(-1, (heads, head_width)).requires_grad_()
        cut_direction = to_windows(direction.view(batch, *map_size, -1), window, 0)

    def ours() -> Outputs:
        if to_text:
            out = kernels.image_to_text_attention(query, key, value, real)
        else:
            out = kernels.text_to_image_attention(query, key, value)
        return Outputs([out], [direction], inputs)

    def peer(attend: Callable[..., Tensor]) -> Callable[[], Outputs]:
        mask = (torch.zeros(batch, text_tokens),) if to_text else ()

        def run() -> Outputs:
            return Outputs([attend(cut, key, value, *mask)], [cut_direction], [cut, key, value])

        return run

    def like_ours(values: list[Tensor]) -> list[Tensor]:
        out, of_query, of_key, of_value = values
        if to_text:
            out, of_query = (
                from_windows(each, map_size, window, 0) for each in (out, of_query.flatten(2))
            )
        return [out.reshape_as(query), of_query.reshape_as(query), of_key, of_value]

    if to_text:
        peers = {"eager": peer(eager_image_to_text), "sdpa": peer(sdpa_image_to_text)}
    else:
        peers = {"eager": peer(eager_text_to_image), "sdpa": peer(sdpa_text_to_image)}
    operation = "image to text" if to_text else "text to image"
    return Call(operation, name, {"fiber": ours, **peers}, like_ours)


def calls() -> Iterator[Call]:
    """Every call of the base model's forward pass, and those of preset small; each shape once."""
    images = [
        ("384", 1, (96, 96), 40),
        ("384", 8, (96, 96), 40),
        ("800x1344", 1, (200, 336), 256),
    ]
    for pixels, batch, whole, text_tokens in images:
        for stage in range(4):
            size = (-(-whole[0] // 2**stage), -(-whole[1] // 2**stage))
            heads = 4 * 2**stage
            where = f"{pixels}, batch {batch}, stage {stage + 1}"
            for shift in (0, 6) if max(size) > 12 else (0,):
                name = f"{where}, shift {shift}"
                yield window_call(name, batch, size, heads, shift)
            if stage >= 2:
                yield cross_call(
                    where, batch, size, heads, text_tokens, to_text=True, head_width=32
                )
                yield cross_call(where, batch, size, 12, text_tokens, to_text=False, head_width=64)
    # A head dim that fills no whole register.
    small: Mapping[str, Any] = {"window": 6, "head_width": 20}
    for stage, (side, heads) in enumerate([(24, 1), (12, 2), (6, 4), (3, 8)]):
        name = f"small, batch 64, stage {stage + 1}"
        yield window_call(f"{name}, shift 0", 64, (side, side), heads, 0, **small)
        if side == 6:
            for to_text in (True, False):
                yield cross_call(name, 64, (6, 6), heads, 17, to_text=to_text, **small)


def values(outputs: Outputs) -> list[Tensor]:
    """Return the outputs, then the gradients of the inputs."""
    gradients = torch.autograd.grad(outputs.outputs, outputs.inputs, outputs.directions)
    return [each.detach() for each in (*outputs.outputs, *gradients)]


def check_alike(call: Call) -> None:
    """Exit with an error if the sides do not compute the same.

    Sums of up to 4,200 float32 products of size 1 in different orders, and gradients of the bias
    over every window, relative to the largest value of a tensor.
    """
    ours = values(call.sides["fiber"]())
    for side in SIDES[1:]:
        for got, expected in zip(call.like_ours(values(call.sides[side]())), ours, strict=False):
            worst = (got - expected).abs().max().item()
            if not worst <= 2e-5 * expected.abs().max().item():
                sys.exit(f"{call.operation}, {call.name}: {side} differs by {worst:.3g}")


def timer(side: Callable[[], Outputs], *, with_gradients: bool) -> Callable[[], float]:
    """Return a function that runs a side once and returns milliseconds."""

    def run() -> float:
        began = time.perf_counter()
        if with_gradients:
            outputs = side()
            torch.autograd.grad(outputs.outputs, outputs.inputs, outputs.directions)
        else:
            with torch.no_grad():
                side()
        return 1000 * (time.perf_counter() - began)

    return run


def enough_rounds(steps: Mapping[str, Callable[[], float]], least: int) -> int:
    """Choose more rounds for short calls, whose times vary most: about half a second in total.

    Args:
        steps: by side, a function that runs it once and returns milliseconds.
        least: minimum number of rounds; the maximum is eight times as many.
    """
    once = sum(step() for step in steps.values())
    return min(max(least, math.ceil(500 / once)), 8 * least)


@dataclass(frozen=True)
class Mean:
    """Geometric mean over calls of a peer's time divided by fiber's."""

    peer: str
    #: Name of an operation, or "all".
    operation: str
    what: str
    value: float

    @property
    def least(self) -> float:
        """Required ratio."""
        return EAGER_MEAN if self.peer == "eager" else SDPA_MEAN[self.operation]

    def __str__(self) -> str:
        return f"{self.operation}, {self.what}: {self.value:.2f} x {self.peer}"


#: Milliseconds by side, by (operation, pass, call).
Medians = Mapping[tuple[str, str, str], Mapping[str, float]]


def means(medians: Medians) -> list[Mean]:
    """Compare all calls with the eager formulation, and each operation with SDPA, by pass."""
    ratios: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for (operation, what, _), times in medians.items():
        ratios["eager", "all", what].append(times["eager"] / times["fiber"])
        ratios["sdpa", operation, what].append(times["sdpa"] / times["fiber"])
    return [Mean(*names, value=geometric_mean(found)) for names, found in ratios.items()]


def judged_calls(medians: Medians) -> dict[tuple[str, str, str], float]:
    """Return the ratio to the eager formulation of every call that has a gate."""
    return {
        name: times["eager"] / times["fiber"]
        for name, times in medians.items()
        if times["eager"] > JUDGED_ABOVE
    }


def failures(medians: Medians) -> list[str]:
    """Print the means; return the gates that are missed."""
    missed = [
        f"{', '.join(name)}: {ratio:.2f} of eager's time, expected {EAGER_CALL}"
        for name, ratio in judged_calls(medians).items()
        if ratio < EAGER_CALL
    ]
    for mean in means(medians):
        print(f"geometric mean, {mean} (at least {mean.least})")
        if mean.value < mean.least:
            missed.append(f"{mean}, expected {mean.least}")
    return missed


def main() -> None:
    """Check, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7, help="minimum number of rounds")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a gate is missed")
    parser.add_argument(
        "--only", default="", help="only calls whose operation or name contains this"
    )
    options = parser.parse_args()
    refuse_debug_build()
    medians = {}
    for call in calls():
        if options.only not in f"{call.operation}, {call.name}":
            continue
        check_alike(call)
        for what, with_gradients in (("forward", False), ("forward and backward", True)):
            steps = {
                f"{side}, {call.operation}, {what}, {call.name}": timer(
                    call.sides[side], with_gradients=with_gradients
                )
                for side in SIDES
            }
            times = interleave(steps, enough_rounds(steps, options.rounds))
            if not options.only:
                eager = f"eager, {call.operation}, {what}, {call.name}"
                report("kernels", "ms", times, peer=eager)
            found = {name.split(",")[0]: median(each) for name, each in times.items()}
            medians[call.operation, what, call.name] = found
            print(
                f"{call.operation}, {call.name}, {what}: {found['fiber']:.2f} ms,"
                f" eager {found['eager'] / found['fiber']:.2f} x,"
                f" sdpa {found['sdpa'] / found['fiber']:.2f} x"
            )
    missed = failures(medians)
    for line in missed:
        print("missed:", line)
    if options.check and missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
