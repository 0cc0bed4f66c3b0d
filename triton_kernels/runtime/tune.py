"""Tile size search on a GPU, for `fiber tune`.

For each kernel, the package's default tile sizes and a few candidates are timed on calls that the
model makes. Meanwhile, the other kernels of a call use the best tile sizes so far. A candidate is
rejected if its results differ from those with the default tile sizes by more than rounding error.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import tiles
from .launch import Launch, run_plan
from .tiles import Line, best, packaged_lines

Sizes = dict[str, int]
#: Launches of one or more calls, in order, and the results of all calls.
Plan = tuple[list[Launch], list[Tensor]]

#: Maximum time of a candidate relative to the default tile sizes. Smaller gains are noise, and
#: different tile sizes may change the last bits of the results.
GAIN = 0.97
REPETITIONS = 15
#: Tolerance relative to the largest element, by input dtype. Tile sizes change the summation order,
#: and large terms may cancel.
ALIKE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
WINDOWS = (12, 18)


def _candidates(names: str, *candidates: tuple[int, ...]) -> list[Sizes]:
    return [dict(zip(names.split(), sizes, strict=True)) for sizes in candidates]


_TILED = _candidates(
    "rows keys num_warps",
    (16, 32, 1), (32, 32, 2), (32, 32, 4), (64, 32, 4), (32, 64, 4), (64, 64, 4), (64, 64, 8),
)  # fmt: skip
_CROSS = _candidates(
    "block_queries block_keys num_warps",
    (32, 32, 2), (32, 32, 4), (64, 32, 4), (32, 64, 4), (64, 64, 4), (64, 64, 8), (128, 32, 4),
    (128, 64, 4), (128, 64, 8), (64, 128, 8),
)  # fmt: skip
_WHOLE = _candidates(
    "rows piece num_warps",
    (16, 64, 1), (16, 64, 2), (16, 64, 4), (16, 128, 1), (16, 128, 2), (16, 128, 4), (16, 128, 8),
)  # fmt: skip
#: Candidates by kernel; all other tile sizes keep their defaults.
CANDIDATES: dict[str, list[Sizes]] = {
    "window_forward": _WHOLE,
    "window_backward": _WHOLE,
    "window_tiled_forward": _TILED,
    "window_tiled_queries": _TILED,
    "window_tiled_keys": _TILED,
    "window_tiled_bias": _TILED,
    "expand_bias": _candidates(
        "block_pairs num_warps", (128, 2), (128, 4), (256, 2), (256, 4), (512, 2), (512, 4)
    ),
    "gather_bias": _candidates("num_warps", (1,), (2,), (4,)),
    "sum_parts": _candidates(
        "group block", (32, 256), (32, 512), (32, 1024), (128, 256), (128, 512), (128, 1024)
    ),
    "cross_attention.attend": _CROSS,
    "cross_attention.walk_keys": _CROSS,
    "cross_attention.walk_queries": _CROSS,
}
#: Values of num_stages to try with the best candidate.
STAGES = (1, 2, 3)
#: Name prefixes of kernels whose table entries have no window, or no head dim.
_WITHOUT_WINDOW = ("sum_parts", "cross_attention")
_WITHOUT_WIDTH = ("expand_bias", "gather_bias", "sum_parts")


@dataclass(frozen=True)
class Case:
    """Calls that are timed together, and the kernels to tune with them."""

    name: str
    kernels: tuple[str, ...]
    plan: Callable[[], Plan]
    window: int | None
    head_width: int
    dtype: torch.dtype


#: Returns the milliseconds that a case's plan takes with the current tile sizes. Raises a
#: `ValueError` with the reason if the plan fails to run or its results differ.
Measure = Callable[[Case], float]


class GpuMeasure:
    """Times plans on a GPU and compares their results with those of the case's first plan."""

    def __init__(
        self,
        timer: Callable[[Callable[[], object]], float],
        wait: Callable[[], object] = torch.cuda.synchronize,
    ) -> None:
        self._timer, self._wait = timer, wait
        self._expected: dict[str, list[Tensor]] = {}

    def __call__(self, case: Case) -> float:
        """Time a case; see `Measure`."""
        try:
            plan = case.plan()
            run = partial(run_plan, plan)
            # Later runs accumulate into the same tensors, so copy the results.
            results = [result.clone() for result in run()]
            self._wait()
        # Too much shared memory, too many registers, an unsupported layout: Triton has no common
        # base class for these errors.
        except Exception as error:
            raise ValueError(f"failed to run: {' '.join(str(error).split())[:120]}") from error
        expected = self._expected.setdefault(case.name, results)
        for number, (got, wanted) in enumerate(zip(results, expected, strict=True)):
            off = difference(got, wanted)
            if not off <= ALIKE[case.dtype]:
                raise ValueError(
                    f"result {number} differs by {off:.2g} relative to its largest element;"
                    f" expected at most {ALIKE[case.dtype]}"
                )
        return statistics.median(self._timer(run) for _ in range(REPETITIONS))


def difference(got: Tensor, wanted: Tensor) -> float:
    """Return the largest absolute difference divided by the largest absolute value of `wanted`."""
    largest = wanted.double().abs().max().clamp(min=1e-30)
    return ((got.double() - wanted.double()).abs().max() / largest).item()


def tune(
    cases: Iterable[Case],
    measure: Measure,
    report: Callable[[str], None],
    *,
    chip: str,
    triton: str,
) -> list[Line]:
    """Search for the fastest tile sizes for each kernel in each case; see `all_cases`.

    Args:
        cases: calls to time.
        measure: function that times a case; see `Measure`.
        report: called with each progress message.
        chip: GPU architecture to record in each table entry; see `tiles.architecture`.
        triton: major and minor version of Triton.

    Returns:
        One table entry for each kernel, window, head dim and dtype.

    Raises:
        ValueError: if a kernel fails with the package's default tile sizes; the message names the
            case.
    """
    found: dict[tuple[Any, ...], Sizes] = {}
    lines: list[Line] = []
    for case in cases:
        keys = {each: tuple(_line(case, each, chip, triton).values()) for each in case.kernels}
        for kernel, key in keys.items():
            if key in found:
                continue
            held = {other: found[its_key] for other, its_key in keys.items() if its_key in found}
            line = _line(case, kernel, chip, triton)
            own = best(packaged_lines(), kernel, {"window": None, "head_width": 0} | line)
            assert own is not None, f"the package's table has no entry for {kernel}"
            found[key] = _fastest(case, kernel, dict(own["tile"]), held, measure, report)
            lines.append(line | {"tile": found[key]})
    return lines


def _line(case: Case, kernel: str, chip: str, triton: str) -> Line:
    """Create a table entry without its tile sizes."""
    line: Line = {"kernel": kernel, "architecture": chip, "triton": triton}
    if not kernel.startswith(_WITHOUT_WINDOW):
        line["window"] = case.window
    if kernel not in _WITHOUT_WIDTH:
        line["head_width"] = case.head_width
    return line | {"dtype": str(case.dtype).removeprefix("torch.")}


def _fastest(
    case: Case,
    kernel: str,
    first: Sizes,
    held: dict[str, Sizes],
    measure: Measure,
    report: Callable[[str], None],
) -> Sizes:
    """Time the default tile sizes and a kernel's candidates; return the tile sizes to use."""

    def timed(sizes: Sizes) -> float:
        with tiles.trying({**held, kernel: sizes}):
            return measure(case)

    def describe(sizes: Sizes) -> str:
        return " ".join(f"{name}={size}" for name, size in sizes.items())

    try:
        own = timed(first)
    except ValueError as error:
        raise ValueError(
            f"{case.name}, {kernel}: error with the package's tile sizes {first}: {error}"
        ) from error
    fastest, least = first, own
    seen = [first]
    for changes in (CANDIDATES[kernel], [{"num_stages": each} for each in STAGES]):
        start = fastest
        for change in changes:
            sizes = start | change
            if sizes in seen:
                continue
            seen.append(sizes)
            try:
                time = timed(sizes)
            except ValueError as error:
                report(f"  {describe(sizes)}: {error}")
                continue
            if time < least:
                fastest, least = sizes, time
    if least > GAIN * own:
        fastest, least = first, own
    report(f"{case.name}, {kernel}: {describe(fastest)}, {own:.4f} -> {least:.4f} ms")
    return fastest


def all_cases(
    device: torch.device, windows: Sequence[int], dtypes: Sequence[torch.dtype]
) -> Iterator[Case]:
    """Yield window attention and cross-attention cases, as in training of the base model."""
    for dtype in dtypes:
        for window in windows:
            yield from window_cases(device, window, dtype)
        yield from cross_cases(device, dtype)


def window_cases(
    device: torch.device,
    window: int,
    dtype: torch.dtype,
    batch: int = 8,
    windows_across: int = 4,
    heads: int = 8,
) -> Iterator[Case]:
    """Yield forward and backward cases for unpadded shifted-window attention with head dim 32."""
    from ..window_attention import triton_launch
    from ..window_attention.window_spec import WindowSpec

    side = window * windows_across
    random = partial(_random, device=device)
    qkv = random(batch, side, side, 3, heads, 32, dtype=dtype)
    table = random((2 * window - 1) ** 2, heads, dtype=torch.float32)
    bias = random(3, heads, 32, dtype=dtype)
    grad = random(batch, side, side, heads, 32, dtype=dtype)
    arguments = (qkv, table, bias, WindowSpec(window, window // 2))

    def forward() -> Plan:
        launches, out = triton_launch.plan_forward(*arguments)
        return launches, [out]

    def backward() -> Plan:
        launches, gradients = triton_launch.plan_backward(grad, *arguments)
        return launches, list(gradients)

    reads = triton_launch.reads_whole_rows(qkv, window)
    differentiates = triton_launch.differentiates_whole_rows(qkv, window, is_sized=False)
    tiled = ("window_tiled_queries", "window_tiled_keys", "window_tiled_bias")
    kernels = ("expand_bias", "window_forward" if reads else "window_tiled_forward")
    name = f"window size {window}, {str(dtype).removeprefix('torch.')}"
    yield Case(f"{name}, forward", kernels, forward, window, 32, dtype)
    kernels = ("window_backward",) if differentiates else tiled
    kernels = (*kernels, "gather_bias", "sum_parts")
    yield Case(f"{name}, backward", kernels, backward, window, 32, dtype)


#: (batch, queries, keys) of two calls that are timed together, for 384 x 384 and 800 x 1344 images.
_TO_TEXT = ((8, 576, 40), (1, 4200, 256))
_TO_IMAGE = ((8, 40, 576), (1, 256, 4200))


def cross_cases(
    device: torch.device,
    dtype: torch.dtype,
    to_text: Sequence[tuple[int, int, int]] = _TO_TEXT,
    to_image: Sequence[tuple[int, int, int]] = _TO_IMAGE,
) -> Iterator[Case]:
    """Yield forward and backward cases for cross-attention in both directions."""
    from ..cross_attention import triton_launch

    for direction, calls, heads, width in (
        ("image to text", to_text, 16, 32),
        ("text to image", to_image, 12, 64),
    ):
        inputs = []
        for batch, queries, keys in calls:
            random = partial(_random, device=device, dtype=dtype)
            q, grad = (random(batch, queries, heads, width) for _ in range(2))
            k, v = (random(batch, keys, heads, width) for _ in range(2))
            inputs.append((grad, q, k, v))
        saved = [_saved(q, k, v) for _, q, k, v in inputs]

        def forward(inputs: Any = inputs) -> Plan:
            return _joined(triton_launch.plan_forward(q, k, v) for _, q, k, v in inputs)

        def backward(inputs: Any = inputs, saved: Any = saved) -> Plan:
            plans = (
                triton_launch.plan_backward(*tensors, *outputs)
                for tensors, outputs in zip(inputs, saved, strict=True)
            )
            return _joined(plans)

        name = f"{direction}, {str(dtype).removeprefix('torch.')}"
        kernels = ("cross_attention.attend",)
        yield Case(f"{name}, forward", kernels, forward, None, width, dtype)
        kernels = ("cross_attention.walk_keys", "cross_attention.walk_queries")
        yield Case(f"{name}, backward", kernels, backward, None, width, dtype)


def _joined(plans: Iterable[tuple[list[Launch], tuple[Tensor, ...]]]) -> Plan:
    every = list(plans)
    return (
        [each for launches, _ in every for each in launches],
        [result for _, results in every for result in results],
    )


def _saved(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Run the forward pass and return its outputs; on the meta device, only allocate them."""
    from ..cross_attention import triton_launch

    with tiles.trying({}):
        plan = triton_launch.plan_forward(q, k, v)
    return plan[1] if q.device.type == "meta" else run_plan(plan)


def _random(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    if device.type == "meta":
        return torch.empty(shape, device=device, dtype=dtype)
    generator = torch.Generator(device).manual_seed(sum(shape))
    return torch.randn(shape, device=device, generator=generator).to(dtype)


def refusal() -> str | None:
    """Return why tile sizes cannot be tuned on this machine, or None if they can."""
    from .dispatch import active_backend

    if not torch.cuda.is_available():
        return "tile sizes are tuned on a CUDA GPU, but torch found none"
    with suppress(RuntimeError):
        backend, reason = active_backend(torch.zeros(1, device="cuda"))
        return None if backend == "triton" else f"the Triton kernels cannot run here: {reason}"
    return "torch found a GPU but cannot use it"
