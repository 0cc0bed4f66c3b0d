"""A step of coarse pre-training: ITC, ITM with hard negatives, and MLM.

Command: python benches/bench_model.py
Peer: `eager_fiber.py`, the published model in plain PyTorch, with a forward pass per objective as
published. Both train preset small in float32 without dropout, micro-batch 8: forward, backward and
AdamW, the peer's in PyTorch's default form, fiber's in the fused form that `fiber.train` uses.
Also measured: forward FLOPs per sample of presets small and base, and the peak memory of a process
above what it held before its first step.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from eager_fiber import Batch, EagerFiber, pretraining_loss
from rows import interleave, refuse_debug_build, report
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fiber.config import FiberConfig, preset
from fiber.data.batch import ImageTextBatch
from fiber.losses.itc_queue import PairQueue
from fiber.models.fiber.image_text import FiberImageText
from fiber.training.config.run import OptimConfig
from fiber.training.config.tasks import ImageTextTask, TasksConfig
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.split_backward import SplitGraph
from fiber.training.objectives.step import TrainStep
from fiber.training.optim import build_optimizer

PEER = "eager, published passes"
OURS = "fiber"
QUEUE = "fiber, queue form"
#: Probability of masking a token, as published, and micro-batch size.
MASKED = 0.15
BATCH = 8


def draw_batch(config: FiberConfig, size: int) -> Batch:
    """Draw images and texts; every text fills the model's length, as published batches do."""
    random = torch.Generator().manual_seed(0)
    shape = (size, config.max_tokens)
    ids = torch.randint(5, config.roberta.vocab_size - 1, shape, generator=random)
    picked = torch.rand(shape, generator=random) < MASKED
    picked[:, 1] = True
    return Batch(
        images=torch.randn(size, 3, config.image_size, config.image_size, generator=random),
        ids=ids,
        masked_ids=ids.masked_fill(picked, config.roberta.vocab_size - 1),
        labels=ids.masked_fill(~picked, -100),
        text_mask=torch.ones(shape, dtype=torch.bool),
    )


def loaded(batch: Batch) -> ImageTextBatch:
    """The batch as the loader gives it; all images are squares of the same size."""
    size, device = len(batch.images), batch.images.device
    sizes = torch.full((size, 2), batch.images.shape[-1], device=device)
    return ImageTextBatch(
        keys=tuple(str(number) for number in range(size)),
        images=batch.images,
        image_sizes=sizes,
        original_sizes=sizes,
        token_ids=batch.ids,
        text_mask=batch.text_mask,
        masked_ids=batch.masked_ids,
        mlm_labels=batch.labels,
        image_ids=torch.arange(size, device=device),
    )


def without_dropout(name: str) -> FiberConfig:
    """A preset with every dropout off: the passes differ, the draws would too."""
    config = preset(name)
    return dataclasses.replace(
        config,
        swin=dataclasses.replace(config.swin, drop_path=0.0),
        roberta=dataclasses.replace(config.roberta, dropout=0.0),
    )


def side(
    name: str, config: FiberConfig, size: int, *, backward: bool = True, device: str = "cpu"
) -> tuple[nn.Module, Callable[[], None]]:
    """Build a model and what runs one batch through it, forward and, if asked, backward."""
    torch.manual_seed(0)
    batch = Batch(*(tensor.to(device) for tensor in draw_batch(config, size)))
    if name == PEER:
        eager = EagerFiber(config).to(device).train()

        def run_peer() -> None:
            loss = pretraining_loss(eager, batch)
            if backward:
                loss.backward()

        return eager, run_peer
    model = FiberImageText(config).to(device).train()
    ours = loaded(batch)
    task, queue = ImageTextTask(share=1), None
    if name == QUEUE:
        task = ImageTextTask(share=1, itc_form="queue", queue_length=2 * size)
        queue = PairQueue(
            task.queue_length,
            width=config.roberta.width,
            image_size=(config.image_size, config.image_size),
            max_tokens=config.max_tokens,
        )

    step = TrainStep(model, TasksConfig(image_text=task))
    step.state.trainings["image_text"].queue = queue

    def run() -> None:
        split = SplitGraph() if backward else None
        for losses in step.branches("image_text", ours, Draw(seed=0, number=0), split):
            if backward:
                sum(losses.values(), torch.zeros((), device=device)).backward()
        if split is not None:
            split.backward()

    return model, run


def stepper(name: str, config: FiberConfig, size: int) -> Callable[[], float]:
    """Make what trains one step and returns its milliseconds."""
    model, run = side(name, config, size)
    optimizer = (
        torch.optim.AdamW(model.parameters(), lr=1e-5)
        if name == PEER
        else build_optimizer(model, OptimConfig(lr=1e-5))
    )

    def step() -> float:
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        run()
        optimizer.step()
        return 1000 * (time.perf_counter() - began)

    return step


def forward_flops(name: str, config: FiberConfig, size: int) -> float:
    """Count GFLOP of one sample's forward passes, matrix products and convolutions."""
    _, run = side(name, config, size, backward=False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / size / 1e9


def peak_mebibytes(name: str, size: int) -> float:
    """Measure in a new process how far a pass's peak lies above what was held before it."""
    done = subprocess.run(
        [sys.executable, __file__, "--peak-of", name, "--batch", str(size)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def _print_peak(name: str, size: int) -> None:
    """Print the peak of the first forward and backward pass, gradients included."""
    _, run = side(name, without_dropout("small"), size)
    # Linux: reset the peak to the current size.
    Path("/proc/self/clear_refs").write_text("5")
    before = kibibytes("VmRSS")
    run()
    print((kibibytes("VmHWM") - before) / 1024)


def kibibytes(field: str) -> int:
    """Read a field of this process's status: VmRSS is its size, VmHWM the peak of it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise RuntimeError(f"/proc/self/status has no field {field}")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--no-flops", action="store_true", help="skip the FLOPs of preset base")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        _print_peak(options.peak_of, options.batch)
        return
    refuse_debug_build()
    names, small = (PEER, OURS), without_dropout("small")
    steps = {name: stepper(name, small, options.batch) for name in names}
    report("model_step", "ms", interleave(steps, options.rounds), peer=PEER)
    peaks = {name: lambda n=name: peak_mebibytes(n, options.batch) for name in names}
    report("model_memory", "MiB", interleave(peaks, 3), peer=PEER)
    for counted in ("small",) if options.no_flops else ("small", "base"):
        config = without_dropout(counted)
        counts = {name: [forward_flops(name, config, 2)] * 2 for name in (*names, QUEUE)}
        report(f"model_flops_{counted}", "GFLOP", counts, peer=PEER)


if __name__ == "__main__":
    main()
