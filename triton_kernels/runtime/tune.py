"""Search of tile sizes for a GPU, for `fiber tune`.

For each kernel, a few candidates are timed on calls of the model, the packaged sizes first; the
other kernels of a call use the sizes found for them so far. A candidate is rejected if its results
differ from those of the packaged sizes by more than rounding.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from . import tiles
from .launch import Launch
from .tiles import Line, best, packaged_lines

Sizes = dict[str, int]
#: Launches of several calls in order, and the results of all of them.
Plan = tuple[list[Launch], list[Tensor]]

#: Largest time of a candidate relative to the packaged sizes: smaller gains are noise, and other
#: sizes may change last bits.
GAIN = 0.97
REPETITIONS = 15
#: Tolerance relative to the largest element, by dtype of the inputs: other tiles sum in another
#: order, and large terms cancel.
ALIKE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
WINDOWS = (12, 18)

_TILED = [
    {"rows": rows, "keys": keys, "num_warps": warps}
    for rows, keys, warps in (
        (16, 32, 1), (32, 32, 2), (32, 32, 4), (64, 32, 4), (32, 64, 4), (64, 64, 4), (64, 64, 8),
    )
]  # fmt: skip
_CROSS = [
    {"block_queries": queries, "block_keys": keys, "num_warps": warps}
    for queries, keys, warps in (
        (32, 32, 2), (32, 32, 4), (64, 32, 4), (32, 64, 4), (64, 64, 4), (64, 64, 8), (128, 32, 4),
        (128, 64, 4), (128, 64, 8), (64, 128, 8),
    )
]  # fmt: skip
_WHOLE = [
    {"rows": rows, "piece": piece, "num_warps": warps}
    for rows, piece, warps in (
        (16, 64, 1), (16, 64, 2), (16, 64, 4), (16, 128, 1), (16, 128, 2), (16, 128, 4),
        (16, 128, 8),
    )
]  # fmt: skip
#: Candidates by kernel; sizes that are not named are the packaged ones.
CANDIDATES: dict[str, list[Sizes]] = {
    "window_forward": _WHOLE,
    "window_backward": _WHOLE,
    "window_tiled_forward": _TILED,
    "window_tiled_queries": _TILED,
    "window_tiled_keys": _TILED,
    "window_tiled_bias": _TILED,
    "expand_bias": [
        {"block_pairs": pairs, "num_warps": warps} for pairs in (128, 256, 512) for warps in (2, 4)
    ],
    "gather_bias": [{"num_warps": warps} for warps in (1, 2, 4)],
    "sum_parts": [
        {"group": group, "block": block} for group in (32, 128) for block in (256, 512, 1024)
    ],
    "cross_attention.attend": _CROSS,
    "cross_attention.walk_keys": _CROSS,
    "cross_attention.walk_queries": _CROSS,
}
#: Values of num_stages, tried with the best candidate.
STAGES = (1, 2, 3)
#: Kernels whose lines have no window, and no head width.
_WITHOUT_WINDOW = ("sum_parts", "cross_attention")
_WITHOUT_WIDTH = ("expand_bias", "gather_bias", "sum_parts")


@dataclass(frozen=True)
class Case:
    """Calls that are timed together, and the kernels that are tuned with them."""

    name: str
    kernels: tuple[str, ...]
    plan: Callable[[], Plan]
    window: int | None
    head_width: int
    dtype: torch.dtype


class Measure(Protocol):
    """Measures a case."""

    def __call__(self, case: Case) -> float:
        """Return the milliseconds of the case's plan with the current sizes.

        Raises:
            ValueError: if it does not run with them or its results differ, with the reason.
        """
        ...


class GpuMeasure:
    """Runs plans on a GPU and compares their results with the first plan of the same case."""

    def __init__(
        self,
        timer: Callable[[Callable[[], object]], float],
        wait: Callable[[], object] = torch.cuda.synchronize,
    ) -> None:
        self._timer, self._wait = timer, wait
        self._expected: dict[str, list[Tensor]] = {}

    def __call__(self, case: Case) -> float:
        """See `Measure`."""
        try:
            launches, results = case.plan()
            run = partial(_run, launches)
            run()
            self._wait()
        # Too much shared memory, too many registers, an unsupported layout: Triton has no common
        # class for these errors.
        except Exception as error:
            raise ValueError(f"does not run: {' '.join(str(error).split())[:120]}") from error
        # Further runs accumulate into the same results, so copy them now.
        results = [result.clone() for result in results]
        expected = self._expected.setdefault(case.name, results)
        for number, (got, wanted) in enumerate(zip(results, expected, strict=True)):
            off = difference(got, wanted)
            if not off <= ALIKE[case.dtype]:
                raise ValueError(f"result {number} differs by {off:.2g} of its largest element")
        return statistics.median(self._timer(run) for _ in range(REPETITIONS))


def _run(launches: Iterable[Launch]) -> None:
    for each in launches:
        each.run()


def difference(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference relative to the largest wanted element."""
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
    """Search the fastest sizes of every kernel of every case.

    Args:
        cases: see `all_cases`.
        measure: times a case.
        report: called with each line of progress.
        chip: architecture of the lines; see `tiles.architecture`.
        triton: major and minor version of Triton.

    Returns:
        A line of the table for each kernel, window, head width and dtype.

    Raises:
        ValueError: if the packaged sizes do not run, with the case.
    """
    found: dict[tuple[Any, ...], Sizes] = {}
    lines: list[Line] = []
    for case in cases:
        for kernel in case.kernels:
            line = _line(case, kernel, chip, triton)
            key = tuple(line.values())
            if key in found:
                continue
            fixed = {other: _found(found, case, other, chip, triton) for other in case.kernels}
            held = {name: sizes for name, sizes in fixed.items() if sizes is not None}
            wanted = {"window": None, "head_width": 0} | line
            own = best(packaged_lines(), kernel, wanted)
            assert own is not None, f"{kernel} has no line in the package's table"
            first = dict(own["tile"])
            found[key] = _fastest(case, kernel, first, held, measure, report)
            lines.append(line | {"tile": found[key]})
    return lines


def _line(case: Case, kernel: str, chip: str, triton: str) -> Line:
    """Make a line of the table without its sizes."""
    line: Line = {"kernel": kernel, "architecture": chip, "triton": triton}
    if not kernel.startswith(_WITHOUT_WINDOW):
        line["window"] = case.window
    if kernel not in _WITHOUT_WIDTH:
        line["head_width"] = case.head_width
    return line | {"dtype": str(case.dtype).removeprefix("torch.")}


def _found(
    found: dict[tuple[Any, ...], Sizes], case: Case, kernel: str, chip: str, triton: str
) -> Sizes | None:
    return found.get(tuple(_line(case, kernel, chip, triton).values()))


def _fastest(
    case: Case,
    kernel: str,
    first: Sizes,
    held: dict[str, Sizes],
    measure: Measure,
    report: Callable[[str], None],
) -> Sizes:
    """Time the packaged sizes and the candidates of one kernel; return the sizes to keep."""

    def timed(sizes: Sizes) -> float:
        with tiles.trying({**held, kernel: sizes}):
            return measure(case)

    try:
        own = timed(first)
    except ValueError as error:
        raise ValueError(f"{case.name}, {kernel}: the package's sizes {first}: {error}") from error
    fastest, least = first, own
    seen = [first]
    for looks_at_stages in (False, True):
        changes = [{"num_stages": each} for each in STAGES]
        start = fastest if looks_at_stages else first
        for changed in changes if looks_at_stages else CANDIDATES[kernel]:
            sizes = start | changed
            if sizes in seen:
                continue
            seen.append(sizes)
            try:
                time = timed(sizes)
            except ValueError as error:
                report(f"  {_describe(sizes)}: {error}")
                continue
            if time < least:
                fastest, least = sizes, time
    if least > GAIN * own:
        fastest, least = first, own
    report(f"{case.name}, {kernel}: {_describe(fastest)}, {own:.4f} -> {least:.4f} ms")
    return fastest


def _describe(sizes: Sizes) -> str:
    return " ".join(f"{name}={size}" for name, size in sizes.items())


def all_cases(
    device: torch.device, windows: Sequence[int], dtypes: Sequence[torch.dtype]
) -> Iterator[Case]:
    """Iterate over calls of the base model in training: windows and both cross attentions."""
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
    """Iterate over forward and backward of a shifted map of whole windows, head width 32."""
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

    tiled = ("window_tiled_queries", "window_tiled_keys", "window_tiled_bias")
    reads = triton_launch.reads_whole_rows(qkv, window)
    differentiates = triton_launch.differentiates_whole_rows(qkv, window, is_sized=False)
    differentiated = ("window_backward",) if differentiates else tiled
    by_pass = {
        "forward": ("expand_bias", "window_forward" if reads else "window_tiled_forward"),
        "backward": (*differentiated, "gather_bias", "sum_parts"),
    }
    for name, plan in (("forward", forward), ("backward", backward)):
        named = f"windows of {window}, {str(dtype).removeprefix('torch.')}, {name}"
        yield Case(named, by_pass[name], plan, window, 32, dtype)


#: (batch, queries, keys) of the two calls that are timed together: 384 x 384 and 800 x 1344 pixels.
_TO_TEXT = ((8, 576, 40), (1, 4200, 256))
_TO_IMAGE = ((8, 40, 576), (1, 256, 4200))


def cross_cases(
    device: torch.device,
    dtype: torch.dtype,
    to_text: Sequence[tuple[int, int, int]] = _TO_TEXT,
    to_image: Sequence[tuple[int, int, int]] = _TO_IMAGE,
) -> Iterator[Case]:
    """Iterate over both passes of both directions: head width 32 to text, 64 to image."""
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

        kernels = ("cross_attention.walk_keys", "cross_attention.walk_queries")
        named = f"{direction}, {str(dtype).removeprefix('torch.')}"
        attend = ("cross_attention.attend",)
        yield Case(f"{named}, forward", attend, forward, None, width, dtype)
        yield Case(f"{named}, backward", kernels, backward, None, width, dtype)


def _joined(plans: Iterable[tuple[list[Launch], tuple[Tensor, ...]]]) -> Plan:
    every = list(plans)
    return (
        [each for launches, _ in every for each in launches],
        [result for _, results in every for result in results],
    )


def _saved(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Run the forward pass and return its outputs; on the meta device, only their shapes."""
    from ..cross_attention import triton_launch

    with tiles.trying({}):
        launches, outputs = triton_launch.plan_forward(q, k, v)
    if q.device.type != "meta":
        _run(launches)
    return outputs


def _random(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    if device.type == "meta":
        return torch.empty(shape, device=device, dtype=dtype)
    generator = torch.Generator(device).manual_seed(sum(shape))
    return torch.randn(shape, device=device, generator=generator).to(dtype)


def refusal() -> str | None:
    """Return why tile sizes cannot be tuned here; None on a GPU that the kernels run on."""
    from .dispatch import active_backend

    if not torch.cuda.is_available():
        return "tile sizes are tuned on a CUDA GPU, and torch finds none here"
    with suppress(RuntimeError):
        backend, reason = active_backend(torch.zeros(1, device="cuda"))
        return None if backend == "triton" else f"the Triton kernels do not run here: {reason}"
    return "torch finds a GPU but cannot use it"
