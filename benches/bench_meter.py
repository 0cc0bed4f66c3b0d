"""METER at the published size: training steps, pairs of retrieval, and memory.

Command: python benches/bench_meter.py
Peer: `eager_meter.py`, METER in plain PyTorch with the published passes. Both sides have the same
weights and inputs, float32 and no dropout; before anything is reported, their gradients and scores
are compared. Measured: CPU time of one thread, of forward and backward without the optimizer's
step, which at a micro-batch of a few images would outweigh what it is in training; and how far the
peak memory of a new process exceeds what it held with weights and gradients. Texts have the maximum
length, also for fiber unless a side says otherwise (`meter_cost.py`).

The step of retrieval runs at another image size: at the published one, the peer would keep some 20
GB of activations for a single image.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from bench_model import kibibytes
from meter_cost import (
    OURS,
    PEER,
    SHORT_TEXT,
    WORKS,
    Drawn,
    draw_batch,
    meter_config,
    our_losses,
    peer_loss,
)
from rows import RESULTS, interleave, refuse_debug_build, report
from torch import Tensor, nn

from benches.eager_meter import EagerMeter
from fiber.checkpoints.published import unstack
from fiber.models.meter.config import MeterConfig
from fiber.models.meter.image_text import MeterImageText
from fiber.models.meter.keys import meter_keys
from fiber.models.pair_scoring import TextFeatureStore, ranking_head, run_pairs
from fiber.training.split_backward import SplitGraph

#: Largest difference of scores and gradients, relative to their norm. Both sides round differently
#: in some 30 layers.
TOLERANCE = 1e-4
SHORT = f"{OURS}, texts of {SHORT_TEXT} tokens"


class Measured(NamedTuple):
    """A work at the size at which it is measured."""

    work: str
    title: str
    #: Images of a step, or texts that one image is scored with.
    batch: int
    #: None: the published size.
    image_size: int | None = None

    def config(self, *, micro: bool) -> MeterConfig:
        """The published model at this size; `micro`: a tiny one instead, for tests."""
        return meter_config(WORKS[self.work], 32 if micro else self.image_size, micro=micro)


MEASURED = {
    each.work: each
    for each in (
        Measured("pretraining", "pre-training at 288, batch 2", 2),
        Measured("vqa", "VQA at 576, batch 1", 1),
        Measured("retrieval_step", "retrieval at 128, batch 2, 16 texts an image", 2, 128),
        Measured("retrieval_pair", "pairs at 384, an image with 8 texts", 8),
    )
}


def draw_models(config: MeterConfig) -> dict[str, nn.Module]:
    """Both models with the same random weights, in training mode."""
    torch.manual_seed(0)
    ours = MeterImageText(config)
    with torch.device("meta"):
        eager = EagerMeter(config)
    eager.load_state_dict(unstack(ours.state_dict(), meter_keys(config)), assign=True)
    models = {PEER: eager.train(), OURS: ours.train()}
    for model in models.values():
        freeze_itm(model)
    return models


def freeze_itm(model: nn.Module) -> None:
    """Freeze the ITM head of a model for retrieval, as published."""
    config = model.config
    if "rank" in config.heads:
        head = model.itm_score if isinstance(model, EagerMeter) else model.itm_head
        head.requires_grad_(False)


def run_step(model: nn.Module, work: str, drawn: Drawn) -> Tensor | None:
    """Run forward and backward of one step; return the gradient of the first convolution.

    Everything that a step computes has a part in it.
    """
    if isinstance(model, EagerMeter):
        peer_loss(model, work, drawn).backward()
        return model.vit_model.visual.conv1.weight.grad
    split = SplitGraph()
    for loss in our_losses(model, work, drawn, split):
        loss.backward()
    split.backward()
    return model.backbone.image.patch_embedding.projection.weight.grad


@torch.no_grad()
def score_texts(model: nn.Module, drawn: Drawn) -> Tensor:
    """Score the first image with every text, as each side evaluates retrieval: (B,)."""
    pairs = drawn.pairs
    texts = pairs.ids, pairs.text_mask
    image = pairs.images[:1]
    if isinstance(model, EagerMeter):
        pooled = model.infer(image.expand(len(pairs.ids), -1, -1, -1), *texts).pooled
        return model.rank_output(pooled)[:, 0]
    store, numbers = TextFeatureStore(), range(len(pairs.ids))
    store.add(model.backbone.text_prefix(*texts), pairs.text_mask)
    prefix = model.backbone.image_prefix(image)
    rows = [(0, number) for number in numbers]
    return run_pairs(model, prefix, store, rows, ranking_head(model), pairs_at_once=len(numbers))


def cpu_seconds(run: Callable[[], object]) -> float:
    """Measure the CPU time of a call."""
    began = time.process_time()
    run()
    return time.process_time() - began


def time_work(measured: Measured, rounds: int, results: Path, *, micro: bool) -> None:
    """Check that both sides agree, then time them and append rows."""
    config = measured.config(micro=micro)
    drawn, models = draw_batch(config, measured.batch), draw_models(config)
    inputs = {PEER: drawn, OURS: drawn}
    if measured.work == "pretraining" and not micro:
        short = draw_batch(config, measured.batch, SHORT_TEXT)
        inputs[SHORT], models[SHORT] = short.trimmed(), models[OURS]
    found: dict[str, Tensor] = {}

    def run(side: str) -> None:
        model = models[side]
        if measured.work == "retrieval_pair":
            found[side] = score_texts(model, inputs[side])
        else:
            found[side] = run_step(model, measured.work, inputs[side])
            # The next side needs the memory.
            model.zero_grad(set_to_none=True)

    values = interleave(
        {side: lambda s=side: cpu_seconds(lambda: run(s)) for side in inputs}, rounds
    )
    difference = ((found[PEER] - found[OURS]).norm() / found[PEER].norm()).item()
    if not difference < TOLERANCE:
        sys.exit(f"{measured.title}: the models differ by {difference:.1e}")
    print(f"{measured.title}: the models differ by {difference:.1e}")
    named = {f"{side}, {measured.title}": own for side, own in values.items()}
    report("meter", "CPU s", named, f"{PEER}, {measured.title}", results)


def peak_mebibytes(side: str, work: str, *, micro: bool) -> float:
    """Measure in a new process how far a step's peak lies above weights and gradients."""
    command = [sys.executable, __file__, "--peak-of", side, "--work", work]
    if micro:
        command.append("--micro")
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def compare_memory(measured: Measured, results: Path, *, micro: bool) -> None:
    """Measure the peaks of both sides twice and append rows."""
    named = {
        f"{side}, {measured.title}": [
            peak_mebibytes(side, measured.work, micro=micro) for _ in range(2)
        ]
        for side in (PEER, OURS)
    }
    report("meter_memory", "MiB", named, f"{PEER}, {measured.title}", results)


def print_peak(side: str, measured: Measured, *, micro: bool) -> None:
    """Print the peak of one forward and backward pass."""
    config = measured.config(micro=micro)
    with torch.device("meta"):
        model = (EagerMeter if side == PEER else MeterImageText)(config).train()
    model.to_empty(device="cpu")
    freeze_itm(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    drawn = draw_batch(config, measured.batch)
    # Linux: reset the peak to the current size.
    Path("/proc/self/clear_refs").write_text("5")
    before = kibibytes("VmRSS")
    run_step(model, measured.work, drawn)
    print((kibibytes("VmHWM") - before) / 1024)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", choices=MEASURED, action="append", help="(default: all)")
    parser.add_argument("--part", choices=("time", "memory"), help="(default: both)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of CSV files")
    parser.add_argument("--micro", action="store_true", help="a tiny model, to try the bench")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.micro and not options.peak_of and options.results == RESULTS:
        parser.error("--micro: expected --results, since rows of a tiny model are no results")
    torch.set_num_threads(1)
    works = [MEASURED[name] for name in options.work or MEASURED]
    if options.peak_of:
        print_peak(options.peak_of, works[0], micro=options.micro)
        return
    refuse_debug_build()
    for measured in works:
        if options.part != "memory":
            time_work(measured, options.rounds, options.results, micro=options.micro)
        if options.part != "time" and measured.work != "retrieval_pair":
            compare_memory(measured, options.results, micro=options.micro)


if __name__ == "__main__":
    main()
