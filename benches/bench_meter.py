"""METER at the published size: training steps, pairs of retrieval, and memory.

Command: python benches/bench_meter.py
Peer: `eager_meter.py`, METER in plain PyTorch with the published passes. Both sides have the same
weights and inputs, float32 and no dropout; before anything is reported, their gradients and scores
are compared. Measured: CPU time of one thread, of forward and backward without the optimizer's
step, which at a micro-batch of a few images would outweigh what it is in training; and how far the
peak memory of a new process exceeds what it held with weights and gradients, and without. Texts
have the maximum length, also for fiber unless a side says otherwise (`meter_cost.py`).

The step of retrieval is measured at half of the published width, with smaller images: the published
size would need some 20 GB for a single image on the peer's side, and more time than a bench has.
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
from fiber.models.features import ImagePrefix
from fiber.models.meter.config import MeterConfig
from fiber.models.meter.image_text import MeterImageText
from fiber.models.meter.keys import meter_keys
from fiber.models.pair_scoring import TextFeatureStore, ranking_head, run_pairs
from fiber.training.objectives.split_backward import SplitGraph

#: Largest difference of scores and gradients in float64, relative to their norm. In float32, the
#: gradient of ranking, a small difference between similar texts, is mostly rounding. Scores of
#: pairs are stored in float32.
TOLERANCE = 1e-6
#: Sides of fiber with shorter texts, and with an image and texts that were encoded before.
SHORT = f"{OURS}, texts of {SHORT_TEXT} tokens"
REUSED = f"{OURS}, encoded before"


class Measured(NamedTuple):
    """A work and the batch that it is measured with."""

    work: str
    #: Images of a step, or texts that one image is scored with.
    batch: int

    @property
    def title(self) -> str:
        """The work in words."""
        unit = "text" if self.work == "retrieval_pair" else "image"
        return f"{WORKS[self.work].title}, {self.batch} {unit}{'s' if self.batch > 1 else ''}"


MEASURED = {
    name: Measured(name, batch)
    for name, batch in {
        "pretraining": 2,
        "vqa": 1,
        "small_retrieval_step": 2,
        "retrieval_pair": 8,
    }.items()
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


class Encoded(NamedTuple):
    """What fiber computes once of an image and of each text."""

    image: ImagePrefix
    texts: TextFeatureStore


@torch.no_grad()
def encode(model: MeterImageText, drawn: Drawn) -> Encoded:
    """Encode the first image and every text."""
    pairs, store = drawn.pairs, TextFeatureStore()
    store.add(model.backbone.text_prefix(pairs.ids, pairs.text_mask), pairs.text_mask)
    return Encoded(model.backbone.image_prefix(pairs.images[:1]), store)


@torch.no_grad()
def score_encoded(model: MeterImageText, encoded: Encoded) -> Tensor:
    """Score the image with every text, as `fiber.evaluate` does: (B,)."""
    count = len(encoded.texts)
    rows = [(0, number) for number in range(count)]
    head = ranking_head(model)
    return run_pairs(model, encoded.image, encoded.texts, rows, head, pairs_at_once=count)


@torch.no_grad()
def score_texts(model: EagerMeter, drawn: Drawn) -> Tensor:
    """Score the first image with every text by whole passes, as published: (B,)."""
    pairs = drawn.pairs
    images = pairs.images[:1].expand(len(pairs.ids), -1, -1, -1)
    return model.rank_output(model.infer(images, pairs.ids, pairs.text_mask).pooled)[:, 0]


def runs_of(
    measured: Measured, models: dict[str, nn.Module], config: MeterConfig, *, double: bool = False
) -> dict[str, Callable[[], Tensor | None]]:
    """Make what runs one step, or scores the texts, by side."""
    drawn = draw_batch(config, measured.batch)
    if double:
        drawn = drawn.double()
    peer, ours = models[PEER], models[OURS]
    if measured.work == "retrieval_pair":
        encoded = encode(ours, drawn)
        return {
            PEER: lambda: score_texts(peer, drawn),
            OURS: lambda: score_encoded(ours, encode(ours, drawn)),
            REUSED: lambda: score_encoded(ours, encoded),
        }
    runs = {
        PEER: lambda: run_step(peer, measured.work, drawn),
        OURS: lambda: run_step(ours, measured.work, drawn),
    }
    if measured.work == "pretraining":
        short = draw_batch(config, measured.batch, SHORT_TEXT).trimmed()
        if double:
            short = short.double()
        runs[SHORT] = lambda: run_step(ours, measured.work, short)
    return runs


def check_agreement(measured: Measured, models: dict[str, nn.Module], config: MeterConfig) -> None:
    """Compare both sides in float64; end the bench if they differ."""
    for model in models.values():
        model.double()
    found = {}
    for side, run in runs_of(measured, models, config, double=True).items():
        found[side] = run()
        for model in models.values():
            model.zero_grad(set_to_none=True)
    for model in models.values():
        model.float()
    for side in [side for side in found if side not in (PEER, SHORT)]:
        difference = ((found[PEER] - found[side]).norm() / found[PEER].norm()).item()
        print(f"{side}, {measured.title}: differs from the peer by {difference:.1e}")
        if not difference < TOLERANCE:
            sys.exit(f"{side}, {measured.title}: expected less than {TOLERANCE:.0e}")


def time_work(measured: Measured, rounds: int, results: Path, *, micro: bool) -> None:
    """Check that both sides agree, then time them and append rows."""
    config = meter_config(WORKS[measured.work], micro=micro)
    models = draw_models(config)
    check_agreement(measured, models, config)
    runs = runs_of(measured, models, config)

    def seconds(side: str) -> float:
        began = time.process_time()
        runs[side]()
        took = time.process_time() - began
        # The next side needs the memory.
        for model in models.values():
            model.zero_grad(set_to_none=True)
        return took

    values = interleave({side: lambda s=side: seconds(s) for side in runs}, rounds)
    named = {f"{side}, {measured.title}": own for side, own in values.items()}
    report("meter", "CPU s", named, f"{PEER}, {measured.title}", results)


def peak_mebibytes(side: str, work: str, *, micro: bool) -> tuple[float, float]:
    """Measure the peak of a step in a new process: above weights and gradients, and with them."""
    command = [sys.executable, __file__, "--peak-of", side, "--work", work]
    if micro:
        command.append("--micro")
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    above, whole = map(float, done.stdout.split())
    return above, whole


def compare_memory(measured: Measured, results: Path, *, micro: bool) -> None:
    """Measure the peaks of both sides twice and append rows."""
    peaks = {
        f"{side}, {measured.title}": [
            peak_mebibytes(side, measured.work, micro=micro) for _ in range(2)
        ]
        for side in (PEER, OURS)
    }
    for number, bench in enumerate(("meter_memory", "meter_memory_whole")):
        named = {name: [found[number] for found in own] for name, own in peaks.items()}
        report(bench, "MiB", named, f"{PEER}, {measured.title}", results)


def print_peak(side: str, measured: Measured, *, micro: bool) -> None:
    """Print the peaks of one forward and backward pass; see `peak_mebibytes`."""
    empty = kibibytes("VmRSS")
    config = meter_config(WORKS[measured.work], micro=micro)
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
    peak = kibibytes("VmHWM")
    print((peak - before) / 1024, (peak - empty) / 1024)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", choices=MEASURED, action="append", help="(default: all)")
    parser.add_argument("--part", choices=("time", "memory"), help="(default: both)")
    parser.add_argument("--rounds", type=int, default=2)
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
