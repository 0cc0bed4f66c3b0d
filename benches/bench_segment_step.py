"""A training step of `scenes_pixel`: masks, classes and phrases of generated scenes.

Command: python benches/bench_segment_step.py
Peer: `eager_xdecoder.py` and `eager_mask_losses.py`, the published computation in plain PyTorch.
Both sides train the model of the recipe in float32 on one batch of its scenes: forward, backward
and AdamW, the peer's in PyTorch's default form. Both read the same texts of classes and the same
phrases, drawn before; random points are drawn in the step. Before anything is timed, losses and
gradients of both sides are compared at equal points. CPU time of one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from rows import RESULTS, interleave, refuse_debug_build, report
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))

from benches import eager_mask_losses
from benches.eager_xdecoder import EagerXDecoder
from fiber.checkpoints.published import unstack
from fiber.data import DataLoader, SegmentationBatch, Tokenizer
from fiber.data.datasets.resolve import open_source
from fiber.models.xdecoder.config import XDecoderConfig
from fiber.models.xdecoder.keys import xdecoder_keys
from fiber.models.xdecoder.segmenter import XDecoder
from fiber.recipes.segmentation import scenes_pixel
from fiber.synthetic.scenes import generate
from fiber.tasks import find_task
from fiber.tasks.segmentation import train
from fiber.tasks.segmentation.fields import SegmentationTask
from fiber.training.config.run import RunConfig
from fiber.training.objectives.draw import Draw
from fiber.training.optim import build_optimizer
from fiber.training.task_loaders import training_transform

PEER, OURS = "eager, published step", "fiber"
DRAW = Draw(seed=0, number=0)
#: Allowed difference of losses and gradients in float64, relative to the largest.
TOLERANCE = 1e-6


class Case(NamedTuple):
    """A run, its task and a batch, in the forms of both sides."""

    config: RunConfig
    task: train.SegmentationTraining
    batch: SegmentationBatch
    class_ids: Tensor
    targets: eager_mask_losses.Targets
    phrases: eager_mask_losses.Phrases
    #: Token that ends a text.
    end_id: int

    @property
    def options(self) -> SegmentationTask:
        """Options of the task."""
        return self.task.options


def draw_case(config: RunConfig, batch_size: int | None = None) -> Case:
    """Generate scenes, and load a batch, by default of the size of the run."""
    size = batch_size or config.data.batch_size
    with tempfile.TemporaryDirectory() as folder:
        generate(folder, train=size, val=1, novel=1, stuff=True)
        tokenizer = Tokenizer.from_file(Path(folder) / "tokenizer.json")
        model = cast(XDecoderConfig, config.model).with_vocabulary(tokenizer.vocab_size + 1)
        config = dataclasses.replace(config, model=model)
        records = open_source("expression_masks", folder, "train")
        loader = DataLoader(
            records,
            "segmentation",
            tokenizer=tokenizer,
            transform=training_transform(model, config.transform("segmentation")),
            batch_size=size,
            max_tokens=model.max_tokens,
        )
        (batch,) = loader.epoch(0)
    assert isinstance(batch, SegmentationBatch)
    (task_options,) = config.tasks.active().values()
    task = find_task("segmentation").trained(task_options)
    assert isinstance(task, train.SegmentationTraining)
    task.read_classes(XDecoder(model), records[0].labels, tokenizer)
    classes = task._step_texts(torch.Generator().manual_seed(0))
    phrases = task.phrases_of(batch, classes, DRAW, torch.arange(size))
    # Of a step, both sides draw the same.
    task._step_texts = lambda random: classes
    task.phrases_of = lambda *arguments: phrases
    masks = [batch.masks_of(row) for row in range(size)]
    labels = batch.mask_labels.split(batch.masks_per_image.tolist())
    return Case(
        config,
        task,
        batch,
        padded_ids(model, *classes)[0],
        eager_mask_losses.Targets(labels, masks),
        eager_mask_losses.Phrases(
            *padded_ids(model, *phrases.texts), phrases.masks, phrases.weights
        ),
        tokenizer.end_ids[0],
    )


def padded_ids(config: XDecoderConfig, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask at all positions, with the largest id of the vocabulary as the end."""
    missing, last = config.max_tokens - ids.shape[1], config.vocab_size - 1
    ids = torch.nn.functional.pad(ids, (0, missing))
    mask = torch.nn.functional.pad(mask, (0, missing))
    ends = mask.sum(1, keepdim=True) - 1
    return torch.where(torch.arange(config.max_tokens) >= ends, last, ids), mask


def draw_models(case: Case) -> dict[str, XDecoder | EagerXDecoder]:
    """Both models with the same weights, each with its own."""
    config = cast(XDecoderConfig, case.config.model)
    torch.manual_seed(0)
    ours = XDecoder(config)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith(("modulation_scale", "mlp_scale")):
                parameter.fill_(0.5)
        # The peer reads a text at its largest id, which is the end in CLIP's vocabulary.
        table = ours.backbone.text.word_embedding.weight
        table[-1] = table[case.end_id]
    peer = EagerXDecoder(config)
    peer.load_state_dict(unstack(ours.state_dict(), xdecoder_keys(config)))
    return {PEER: peer.train(), OURS: ours.train()}


def total_loss(
    model: XDecoder | EagerXDecoder,
    case: Case,
    images: Tensor,
    draw: eager_mask_losses.Points = eager_mask_losses.random_points,
) -> Tensor:
    """Compute the weighted loss of a side."""
    weights = case.options.weights()
    if isinstance(model, EagerXDecoder):
        options = eager_mask_losses.Options(case.options.num_points, case.options.phrase_layers)
        layers = eager_mask_losses.layer_losses(
            model, images, case.class_ids, case.targets, case.phrases, options, draw
        )
        losses = [weights[name] * loss for own in layers for name, loss in own.items()]
    else:
        batch = dataclasses.replace(case.batch, images=images)
        (found,) = case.task.branches(cast(Any, model), batch, DRAW)
        losses = [weights[name] * loss for name, loss in found.items()]
    return torch.stack(losses).sum()


def fixed_points(count: int, num_points: int) -> Tensor:
    """The same points for every mask."""
    random = torch.Generator().manual_seed(num_points)
    drawn = torch.rand(1, num_points, 2, generator=random, dtype=torch.float64)
    return drawn.expand(count, -1, -1).contiguous()


def check_agreement(models: dict[str, XDecoder | EagerXDecoder], case: Case) -> None:
    """Compare loss and gradient of the first convolution in float64; end the bench if they differ.

    Everything that a step computes has a part in that gradient, but texts, which the loss has.
    """
    images, found = case.batch.images.double(), {}
    seeded = train.seeded_points
    train.seeded_points = lambda *arguments: lambda counts, num: fixed_points(sum(counts), num)
    try:
        for side, model in models.items():
            model.double()
            loss = total_loss(model, case, images, fixed_points)
            loss.backward()
            embedding = (
                model.backbone.patch_embed.proj
                if isinstance(model, EagerXDecoder)
                else model.backbone.image.patch_embedding.projection
            )
            assert embedding.weight.grad is not None
            found[side] = (loss.detach()[None], embedding.weight.grad.flatten())
            model.zero_grad(set_to_none=True)
            model.float()
    finally:
        train.seeded_points = seeded
    pairs = zip(found[PEER], found[OURS], strict=True)
    difference = max(float((a - b).norm() / a.norm()) for a, b in pairs)
    print(f"{OURS}: loss and gradient differ from the peer's by {difference:.1e}")
    if not difference < TOLERANCE:
        sys.exit(f"{OURS}: expected less than {TOLERANCE:.0e}")


def stepper(model: XDecoder | EagerXDecoder, case: Case) -> Callable[[], float]:
    """Make what trains one step and returns its milliseconds of CPU time."""
    optim = case.config.optim
    optimizer = (
        torch.optim.AdamW(
            model.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay
        )
        if isinstance(model, EagerXDecoder)
        else build_optimizer(model, optim)
    )

    def step() -> float:
        began = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        total_loss(model, case, case.batch.images).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        return 1e3 * (time.process_time() - began)

    return step


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9, help="rounds, at least 2")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of CSV files")
    parser.add_argument("--micro", action="store_true", help="a small batch, to try the bench")
    options = parser.parse_args(arguments)
    if options.micro and options.results == RESULTS:
        parser.error("--micro: expected --results, since rows of a small batch are no results")
    refuse_debug_build()
    torch.set_num_threads(1)
    case = draw_case(scenes_pixel(), batch_size=2 if options.micro else None)
    models = draw_models(case)
    check_agreement(models, case)
    steps = {side: stepper(model, case) for side, model in models.items()}
    report("segment_step", "ms of CPU", interleave(steps, options.rounds), PEER, options.results)


if __name__ == "__main__":
    main()
