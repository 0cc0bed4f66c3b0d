"""Cost of the settings that split a training step or draw by row: time and peak memory.

Command: python benches/bench_passes.py
Peer: the same step in one pass, with `train.draws=rank`. All sides train preset small by ITC, ITM
and MLM in float32, micro-batch 32: forward and backward passes as in `fiber.train`. Times are CPU
time of one thread. Rows of step_passes.csv are of a model without dropout; those of step_draws.csv
have the published dropout and stochastic depth. Peak memory (step_passes_memory.csv) is that of a
process above what it held before its first step.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from bench_model import draw_batch, kibibytes, loaded, without_dropout
from rows import interleave, refuse_debug_build, report

from fiber.config import FiberConfig, preset
from fiber.models.fiber.image_text import FiberImageText
from fiber.training.config.tasks import ImageTextTask, TasksConfig
from fiber.training.distributed.processes import Processes
from fiber.training.distributed.replicate import Replicate
from fiber.training.micro_batch import MicroBatches
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.forward_passes import ForwardPasses
from fiber.training.objectives.step import TrainStep

BATCH = 32
WHOLE = "one pass"
#: Sides of step_passes.csv: passes, and whether activations of blocks are computed again.
PASSES = {
    WHOLE: (1, False),
    "2 passes": (2, False),
    "4 passes": (4, False),
    "gradient checkpointing": (1, True),
}
DRAWS = ("train.draws=rank", "train.draws=row")


def stepper(
    config: FiberConfig, *, passes: int = 1, checkpointing: bool = False, by_row: bool = False
) -> Callable[[], float]:
    """Make what computes the gradients of one step and returns its milliseconds of CPU time."""
    torch.manual_seed(0)
    model = FiberImageText(config).train()
    model.backbone.gradient_checkpointing = checkpointing
    tasks = TasksConfig(image_text=ImageTextTask(share=1))
    train_step = TrainStep(model, tasks)
    strategy = Replicate(Processes(rank=0, world_size=1, device=torch.device("cpu")))
    strategy.prepare(train_step)
    micro_batches = MicroBatches(
        train_step,
        strategy,
        accumulation=1,
        passes=ForwardPasses(passes),
        autocast=partial(torch.autocast, "cpu", enabled=False),
    )
    batch = loaded(draw_batch(config, BATCH))

    def step() -> float:
        began = time.process_time()
        model.zero_grad(set_to_none=True)
        strategy.begin_step("image_text")
        micro_batches.backward("image_text", batch, Draw(0, 0, by_row), is_last=True)
        return 1000 * (time.process_time() - began)

    return step


def of_passes(side: str) -> Callable[[], float]:
    """Make the step of a side of `PASSES`."""
    passes, checkpointing = PASSES[side]
    return stepper(without_dropout("small"), passes=passes, checkpointing=checkpointing)


def peak_mebibytes(side: str) -> float:
    """Measure in a new process how far the peak of a step lies above what was held before it."""
    done = subprocess.run(
        [sys.executable, __file__, "--peak-of", side], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def _print_peak(side: str) -> None:
    step = of_passes(side)
    # Linux: reset the peak to the current size.
    Path("/proc/self/clear_refs").write_text("5")
    before = kibibytes("VmRSS")
    step()
    print((kibibytes("VmHWM") - before) / 1024)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        _print_peak(options.peak_of)
        return
    refuse_debug_build()
    torch.set_num_threads(1)
    steps = {side: of_passes(side) for side in PASSES}
    report("step_passes", "ms of CPU", interleave(steps, options.rounds), peer=WHOLE)
    peaks = {side: lambda side=side: peak_mebibytes(side) for side in PASSES}
    report("step_passes_memory", "MiB", interleave(peaks, 3), peer=WHOLE)
    drawn = {side: stepper(preset("small"), by_row=side.endswith("row")) for side in DRAWS}
    report("step_draws", "ms of CPU", interleave(drawn, options.rounds), peer=DRAWS[0])


if __name__ == "__main__":
    main()
