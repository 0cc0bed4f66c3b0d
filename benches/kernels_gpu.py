"""Verify and time the attention kernels on a GPU.

Command: python benches/kernels_gpu.py [--quick] [--output DIR] [--minutes N]
Verified: every operation and every gradient in bfloat16, float16 and float32 against float64 plain
PyTorch (`gpu_verify.py`), and that a hundred backward passes give the same bits. After a failure
nothing is timed.
Timed: every call of the base model (`gpu_shapes.py`), forward and backward, in bfloat16, with the
peers of `gpu_peers.py`; a training step of the coarse stage, and a forward pass of one pair as a
CUDA graph (`gpu_model.py`). A peer that does not support a call, fails or gives other numbers is a
row with the reason. A call that does not fit into --minutes is a row too; FlexAttention, which is
compiled for every shape, is last.
Rows: kernels_gpu.csv in benches/results or `--output`, with the name and driver of the card.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from bench_kernels import Outputs
from bench_model import without_dropout
from gpu_model import Passes, captured_forward, training_step
from gpu_peers import FLEX, OURS, SIDES, Side, comparable, sides
from gpu_shapes import Card, Deadline, Shape, measure_card, micro_shapes, shapes, work
from gpu_verify import verify
from rows import RESULTS, interleave, refuse_debug_build
from torch import Tensor

from fiber import kernels
from fiber.config import FiberConfig
from fiber.env import describe_machine
from fiber.kernels.runtime.timer import GpuTimer

Timer = Callable[[Callable[[], object]], float]

FILE = "kernels_gpu.csv"
PASSES = ("forward", "backward")
#: Tolerance of a peer's output, relative to fiber's largest element: both round to bfloat16.
ALIKE = 5e-2
NO_GPU = "kernels_gpu needs a CUDA GPU, and torch finds none; --dry tries the script on a CPU"


class Rows:
    """Writes rows as they come, each with what it was measured on."""

    def __init__(self, folder: Path, card: Card) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / FILE
        self._card = card
        self._machine = describe_machine()
        self._started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        #: Medians by (shape, pass, side), for the summary.
        self.medians: dict[tuple[Shape, str, str], float] = {}

    def add(
        self,
        *,
        operation: str,
        call: str,
        batch: int,
        what: str,
        side: str,
        times: list[float],
        floor: float | None = None,
        peak_bytes: int | None = None,
        saved_bytes: int | None = None,
        note: str = "",
    ) -> None:
        """Write one row; times and floor in milliseconds, no times where the note says why."""
        fifths = statistics.quantiles(times, n=5, method="inclusive") if len(times) > 1 else None
        median = statistics.median(times) if times else None
        row = {
            "started": self._started,
            "card": self._card.name,
            "driver": self._card.driver,
            "operation": operation,
            "call": call,
            "batch": batch,
            "pass": what,
            "side": side,
            "median_ms": _number(median),
            "p20_ms": _number(fifths[0] if fifths else None),
            "p80_ms": _number(fifths[-1] if fifths else None),
            "rounds": len(times),
            "floor_ms": _number(floor),
            "of_floor": _number(floor / median if floor and median else None),
            "peak_mib": _number(None if peak_bytes is None else peak_bytes / 2**20),
            "saved_mib": _number(None if saved_bytes is None else saved_bytes / 2**20),
            "note": note,
            "card_tb_per_s": _number(self._card.bytes_per_second / 1e12),
            "card_tflop_per_s": _number(self._card.operations_per_second / 1e12),
            "triton": _triton(),
            **self._machine,
        }
        is_new = not self.file.exists()
        if not is_new:
            with self.file.open(newline="") as known:
                header = next(csv.reader(known))
            if header != list(row):
                sys.exit(f"{self.file} has the columns {header}; expected {list(row)}")
        with self.file.open("a", newline="") as out:
            writer = csv.DictWriter(out, fieldnames=list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        shown = f"{median:10.3f} ms" if median is not None else f"{'':>13}"
        part = f", {row['of_floor']} of the floor" if row["of_floor"] else ""
        print(f"{operation}, {call}, batch {batch}, {what}, {side:16} {shown}{part} {note}")
        sys.stdout.flush()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "not installed"


def run_pass(side: Side, what: str) -> Callable[[], object]:
    """Make what a timer runs: a forward pass, or the backward pass of a graph that is kept."""
    if what == "forward":

        def forward() -> None:
            with torch.no_grad():
                side()

        return forward
    kept = side()
    return partial(gradients, kept, keep=True)


def gradients(outputs: Outputs, keep: bool = False) -> tuple[Tensor, ...]:
    """Run the backward pass."""
    return torch.autograd.grad(
        outputs.outputs, outputs.inputs, outputs.directions, retain_graph=keep
    )


def saved_bytes(side: Side) -> int:
    """Bytes that a forward pass keeps for the backward pass, its inputs among them."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = side()
    del held
    return sum(kept.values())


def peak_bytes(side: Side, what: str, device: torch.device) -> int | None:
    """Peak of memory in a pass above what is held before it; None off the GPU."""
    run = run_pass(side, what)
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def prepare(
    shape: Shape, name: str, side: Side, ours: Tensor, what: str
) -> Callable[[], object] | str:
    """Run a peer once and compare; gives what to time, or why it is left out."""
    told: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with torch.set_grad_enabled(what == "backward"):
                outputs = side()
            off = (comparable(shape, name, outputs.outputs[0]) - ours).abs().max().item()
            if not off <= ALIKE * ours.abs().max().item():
                return f"refused: its numbers differ from ours by {off:.2g}"
            if what == "backward":
                gradients(outputs)
            return run_pass(side, what)
    # Any failure of a peer becomes a row; the run continues.
    except Exception as error:
        reasons = [str(error), *(str(warning.message) for warning in told)]
        return "refused: " + " ".join(" | ".join(reasons).split())[:300]


def measure(
    shape: Shape,
    names: Iterable[str],
    rows: Rows,
    card: Card,
    timer: Timer,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
) -> None:
    """Time both passes of one call, all sides in turns; an error in ours ends the run."""
    names = tuple(names)
    every = sides(shape, device, dtype)
    ours = comparable(shape, OURS, every[OURS]().outputs[0])
    for what in PASSES:
        floor = card.floor_milliseconds(work(shape, dtype.itemsize, backward=what == "backward"))
        add = partial(
            rows.add, operation=shape.operation, call=shape.name, batch=shape.batch, what=what
        )
        runs: dict[str, Callable[[], float]] = {}
        for name in names:
            if name == OURS:
                runs[name] = partial(timer, run_pass(every[name], what))
                continue
            found = prepare(shape, name, every[name], ours, what)
            if isinstance(found, str):
                add(side=name, times=[], floor=floor, note=found)
            else:
                runs[name] = partial(timer, found)
        for name, times in interleave(runs, rounds).items():
            rows.medians[shape, what, name] = statistics.median(times)
            add(
                side=name,
                times=times,
                floor=floor,
                peak_bytes=peak_bytes(every[name], what, device),
                saved_bytes=saved_bytes(every[name]) if what == "backward" else None,
            )


def measure_model(
    rows: Rows, device: torch.device, config: FiberConfig, batch: int, rounds: int
) -> None:
    """Time whole training steps and, on a GPU, a captured forward."""
    groups: list[tuple[str, int, dict[str, Passes]]] = [
        ("training step", batch, training_step(device, config, batch, rounds))
    ]
    if device.type == "cuda":
        groups.append(("forward of a pair", 1, captured_forward(device, config, rounds)))
    for what, size, found in groups:
        for name, passes in found.items():
            rows.add(
                operation="model",
                call=f"{config.image_size} pixels",
                batch=size,
                what=what,
                side=name,
                times=passes.milliseconds,
                peak_bytes=passes.peak_bytes or None,
                note=f"refused: {passes.refused}" if passes.refused else "",
            )


def summary(rows: Rows) -> list[str]:
    """Give, for every call and pass, how many times as long the fastest peer takes."""
    lines = []
    for (shape, what, name), ours in rows.medians.items():
        if name != OURS:
            continue
        peers = {
            side: rows.medians[shape, what, side]
            for side in SIDES
            if side != OURS and (shape, what, side) in rows.medians
        }
        call = f"{shape.operation}, {shape.name}, batch {shape.batch}, {what}"
        if not peers:
            lines.append(f"{call}: no peer ran")
            continue
        best = min(peers, key=peers.__getitem__)
        eager = f", eager {peers['eager'] / ours:.2f}" if "eager" in peers else ""
        lines.append(f"{call}: the fastest peer ({best}) takes {peers[best] / ours:.2f}{eager}")
    return lines


def run(options: argparse.Namespace, device: torch.device, card: Card, timer: Timer) -> int:
    """Verify, measure, report; gives the exit code."""
    deadline = Deadline(60 * options.minutes)
    dtypes = [torch.float32] if options.dry else [torch.bfloat16, torch.float16, torch.float32]
    times = 3 if options.dry else 100
    off = verify(device, dtypes, micro=options.dry, times=times)
    for line in off:
        print("wrong:", line)
    if off:
        print("nothing is timed")
        return 1
    rows = Rows(options.output, card)
    print(card)
    rounds = 2 if options.dry else 7 if options.quick else 15
    every = list(micro_shapes() if options.dry else shapes(quick=options.quick))
    fast = tuple(name for name in SIDES if name != FLEX)
    time_call = partial(
        measure,
        rows=rows,
        card=card,
        timer=timer,
        device=device,
        dtype=dtypes[0],
        rounds=rounds,
    )
    plan: list[tuple[str, Callable[[], None]]] = [
        (
            f"{shape.operation}, {shape.name}",
            partial(time_call, shape, fast),
        )
        for shape in every
    ]
    if not options.dry:
        config = without_dropout("base")
        plan.append(("model", partial(measure_model, rows, device, config, 8, rounds=10)))
    plan += [(f"{FLEX}, {shape.name}", partial(time_call, shape, (OURS, FLEX))) for shape in every]
    _follow(plan, deadline, rows)
    return 0


def _follow(plan: list[tuple[str, Callable[[], None]]], deadline: Deadline, rows: Rows) -> None:
    """Run the parts that fit into the time, name the others, and print the summary."""
    for name, part in plan:
        if deadline.left() > 0:
            part()
        else:
            rows.add(
                operation=name, call="", batch=0, what="", side="", times=[],
                note="left out: the minutes are over",
            )  # fmt: skip
    print("\n".join(summary(rows)))
    print(f"rows: {rows.file}")


def dry_card() -> Card:
    """A card that does one of everything in a second, for trying the script."""
    return Card("none (dry run)", "none", 1.0, 1.0, 1.0)


def _time_nothing(work: Callable[[], Any]) -> float:
    """Run, and say that it took a millisecond."""
    work()
    return 1.0


def main(arguments: list[str] | None = None) -> int:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="only 384 pixels at batch 8")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"directory of {FILE}")
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="time limit, after which no part is started"
    )
    parser.add_argument(
        "--dry", action="store_true", help="test the script on a CPU: tiny calls, no times"
    )
    options = parser.parse_args(arguments)
    if options.dry:
        if options.output == RESULTS:
            parser.error("--dry measures nothing: give it an --output of its own")
        return run(options, torch.device("cpu"), dry_card(), _time_nothing)
    if not torch.cuda.is_available():
        parser.error(NO_GPU)
    refuse_debug_build()
    backend, reason = kernels.active_backend(torch.zeros(1, device="cuda"))
    if backend != "triton":
        parser.error(f"the kernels do not run here: {reason}")
    device = torch.device("cuda", torch.cuda.current_device())
    timer = GpuTimer(device)
    return run(options, device, measure_card(device, timer, torch.bfloat16), timer)


if __name__ == "__main__":
    sys.exit(main())
