"""FLOPs of METER at the published size, and what its benches run.

Command: python benches/meter_cost.py
Peer: `eager_meter.py`, METER in plain PyTorch with the published passes. Counted are the matrix
products, convolutions and attention of the forward passes, per sample, on the meta device, where
weights of the published size take no memory. The losses are those of training and the scores those
of retrieval. The exit code is 1 if a gate is missed.

Texts have the maximum length. The published data set pads every text to it; fiber's loader pads to
the longest text of a batch, so shorter texts cost it less, as the sides with 20 tokens show.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

# The eager models import each other from the repository root, like the tests.
sys.path.append(str(Path(__file__).parents[1]))
from rows import RESULTS, refuse_debug_build, report

from benches import eager_meter
from benches.eager_meter import Batch, EagerMeter
from fiber.config import ClipConfig, RobertaConfig
from fiber.data.batch import ImageTextBatch, QuestionBatch, RankingBatch
from fiber.losses.itm import half_pairs
from fiber.models.meter.config import CrossConfig, MeterConfig, MeterHeadsConfig
from fiber.models.meter.image_text import MeterImageText
from fiber.training.config.tasks import ImageTextTask, QuestionTask, RankingTask, TasksConfig
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.split_backward import SplitGraph
from fiber.training.objectives.step import TrainStep

PEER = "eager, published passes"
OURS = "fiber"
#: Tokens of a text that the published whole-word rule picks at most: round(0.15 * 50).
PICKED = 8
#: False texts that an image is ranked with, as published.
FALSE_TEXTS = 15
#: Tokens of the shorter texts: what the longest caption of a batch has.
SHORT_TEXT = 20


class Work(NamedTuple):
    """One of the works that are compared."""

    title: str
    heads: tuple[str, ...]
    image_size: int
    max_tokens: int
    #: Forward GFLOP per sample of the published code, counted on its own modules.
    published_gflops: float | None
    #: Least ratio of the peer's FLOPs to fiber's, if it is a gate.
    gate: float | None = None
    #: Channels of both encoders and of the fusion.
    width: int = 768


WORKS = {
    "pretraining": Work("pre-training at 288", ("itm", "mlm"), 288, 50, 221.2, 1.45),
    "retrieval_step": Work("retrieval step at 384", ("itm", "rank"), 384, 40, 3166),
    # What a machine with 16 GB of memory holds. Less is saved than at the published size.
    "small_retrieval_step": Work(
        "retrieval step at 256 with half of the width", ("itm", "rank"), 256, 40, None, width=384
    ),
    "retrieval_pair": Work("retrieval pair at 384", ("itm", "rank"), 384, 40, 186.2, 2.9),
    "vqa": Work("VQA at 576", ("vqa",), 576, 50, 456.5, 1.07),
}


def meter_config(work: Work, *, micro: bool = False) -> MeterConfig:
    """METER-CLIP-B/16 with RoBERTa, as published, for a work; `micro`: a tiny one, for tests.

    It has no dropout: the passes of both sides differ, so random numbers would too.
    """
    width = 32 if micro else work.width
    # Heads of 64 channels, as published.
    size = {"width": width, "num_heads": 2 if micro else width // 64}
    ffn = {"ffn_width": 4 * width, "dropout": 0.0, **size}
    clip, roberta = ClipConfig(**size), RobertaConfig(**ffn)
    cross = CrossConfig(**ffn)
    if micro:
        clip = dataclasses.replace(clip, num_blocks=3)
        roberta = dataclasses.replace(roberta, vocab_size=100, num_layers=2)
        cross = dataclasses.replace(cross, num_layers=3)
    return MeterConfig(
        image_size=32 if micro else work.image_size,
        max_tokens=work.max_tokens,
        clip=clip,
        roberta=roberta,
        cross=cross,
        image_text=MeterHeadsConfig(heads=work.heads, num_answers=50 if micro else 3129),
    )


class Drawn(NamedTuple):
    """A batch of either side."""

    pairs: Batch
    #: (B, answers) float32.
    targets: Tensor

    def trimmed(self) -> Drawn:
        """Without padding columns, as fiber's loader makes it."""
        own, false = self.pairs.text_mask, self.pairs.false_mask
        length = int(max(own.sum(1).max(), false.sum(2).max()))
        texts = ("ids", "text_mask", "masked_ids", "mlm_labels", "false_ids", "false_mask")
        cut = {name: getattr(self.pairs, name)[..., :length] for name in texts}
        return self._replace(pairs=self.pairs._replace(**cut))

    def double(self) -> Drawn:
        """With images and targets in float64."""
        pairs = {name: getattr(self.pairs, name).double() for name in ("images", "false_images")}
        return self._replace(pairs=self.pairs._replace(**pairs), targets=self.targets.double())


def draw_batch(config: MeterConfig, size: int, tokens: int | None = None) -> Drawn:
    """Draw pairs whose texts have `tokens` tokens, by default the maximum length."""
    random = torch.Generator().manual_seed(0)
    length = config.max_tokens if tokens is None else tokens

    def texts(*shape: int) -> tuple[Tensor, Tensor]:
        mask = (torch.arange(config.max_tokens) < length).expand(*shape, -1).clone()
        ids = torch.randint(5, config.vocab_size - 1, mask.shape, generator=random)
        return ids.masked_fill(~mask, 1), mask

    images = torch.randn(size, 3, config.image_size, config.image_size, generator=random)
    # The images that fiber's loss pairs with texts; the published data set draws others.
    half = half_pairs(torch.arange(size), seed=0, step=0) if size > 1 else None
    ids, mask = texts(size)
    false_ids, false_mask = texts(size, FALSE_TEXTS)
    picked = torch.zeros_like(mask)
    picked[:, 1 : 1 + min(PICKED, length - 2)] = True
    answers = torch.rand(size, config.num_answers, generator=random)
    pairs = Batch(
        images=images,
        false_images=images if half is None else images[half.image_index],
        ids=ids,
        text_mask=mask,
        itm_labels=torch.ones(size, dtype=torch.int64) if half is None else half.labels,
        masked_ids=ids.masked_fill(picked, config.vocab_size - 1),
        mlm_labels=ids.masked_fill(~picked, -100),
        false_ids=false_ids,
        false_mask=false_mask,
    )
    return Drawn(pairs, (answers > 0.999).float())


def peer_loss(model: EagerMeter, name: str, drawn: Drawn) -> Tensor:
    """Compute the summed losses of a step, or the scores of pairs, by whole passes."""
    pairs = drawn.pairs
    if name == "pretraining":
        return eager_meter.pretraining_loss(model, pairs)
    if name.endswith("retrieval_step"):
        return eager_meter.retrieval_loss(model, pairs)
    if name == "vqa":
        return eager_meter.vqa_loss(model, pairs.images, pairs.ids, pairs.text_mask, drawn.targets)
    return model.rank_output(model.infer(pairs.images, pairs.ids, pairs.text_mask).pooled)


def our_losses(
    model: MeterImageText, name: str, drawn: Drawn, split: SplitGraph | None = None
) -> Iterator[Tensor]:
    """Yield the losses of a step one branch at a time, as the trainer computes them."""
    pairs, size = drawn.pairs, len(drawn.pairs.images)
    sizes = torch.full((size, 2), model.config.image_size)
    common: dict[str, Any] = {
        "keys": tuple(str(number) for number in range(size)),
        "images": pairs.images,
        "image_sizes": sizes,
        "original_sizes": sizes,
        "token_ids": pairs.ids,
        "text_mask": pairs.text_mask,
    }
    captions = {
        "masked_ids": pairs.masked_ids,
        "mlm_labels": pairs.mlm_labels,
        "image_ids": torch.arange(size),
        **common,
    }
    batch: Any
    if name == "vqa":
        task, tasks = "question", TasksConfig(question=QuestionTask(share=1))
        batch = QuestionBatch(targets=drawn.targets, **common)
    elif name == "pretraining":
        pretraining = ImageTextTask(share=1, itc=0.0, itm_negatives="random")
        task, tasks = "image_text", TasksConfig(image_text=pretraining)
        batch = ImageTextBatch(**captions)
    else:
        task, tasks = "ranking", TasksConfig(ranking=RankingTask(share=1))
        batch = RankingBatch(false_ids=pairs.false_ids, false_mask=pairs.false_mask, **captions)
    step = TrainStep(model, tasks)
    for losses in step.branches(task, batch, Draw(seed=0, number=0), split):
        yield sum(losses.values(), torch.zeros((), device=pairs.images.device))


class OnMeta(TorchFunctionMode):
    """Move CPU tensors to the meta device in calls that combine both.

    Shapes depend on the values of labels and of image numbers, which therefore stay on the CPU.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function."""
        arguments = (args, kwargs or {})
        devices = {leaf.device.type for leaf in tree_leaves(arguments) if _is_tensor(leaf)}
        if {"cpu", "meta"} <= devices:
            arguments = tree_map(
                lambda leaf: leaf.to("meta") if _is_tensor(leaf) else leaf, arguments
            )
        return func(*arguments[0], **arguments[1])


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, Tensor)


def forward_gflops(
    side: str, name: str, config: MeterConfig, *, size: int = 2, tokens: int | None = None
) -> float:
    """Count GFLOP of one sample's forward passes; of fiber's retrieval pair, with its prefixes."""
    drawn = draw_batch(config, size, tokens)
    drawn = drawn if side == PEER else drawn.trimmed()
    pairs = drawn.pairs
    # What fiber's losses read the values of stays on the CPU.
    kept = () if side == PEER else ("mlm_labels",)
    moved = {key: value.to("meta") for key, value in pairs._asdict().items() if key not in kept}
    drawn = Drawn(pairs._replace(**moved), drawn.targets.to("meta"))
    with torch.device("meta"):
        model = (EagerMeter if side == PEER else MeterImageText)(config).train()
    with torch.no_grad(), OnMeta():
        prepared = prepare_pair(model, drawn) if (side, name) == (OURS, "retrieval_pair") else None
        with FlopCounterMode(display=False) as counter:
            if side == PEER:
                peer_loss(model, name, drawn)
            elif prepared is not None:
                prepared()
            else:
                for _ in our_losses(model, name, drawn):
                    pass
    return counter.get_total_flops() / size / 1e9


def prepare_pair(model: MeterImageText, drawn: Drawn) -> Callable[[], Tensor]:
    """Compute the prefixes of a batch; return what scores its pairs."""
    pairs, backbone = drawn.pairs, model.backbone
    image = backbone.image_prefix(pairs.images)
    text = backbone.text_prefix(pairs.ids, pairs.text_mask)

    def score() -> Tensor:
        fused = backbone.fuse(image, text, pairs.text_mask, wanted="pooled")
        return model.rank_scores(model.pooled(fused))

    return score


def main() -> int:
    """Count, print and append rows; 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", choices=WORKS, action="append", help="(default: all)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the CSV file")
    options = parser.parse_args()
    refuse_debug_build()
    missed = []
    for name in options.work or WORKS:
        work = WORKS[name]
        config = meter_config(work)
        counts = {
            f"{PEER}, {work.title}": forward_gflops(PEER, name, config),
            f"{OURS}, {work.title}": forward_gflops(OURS, name, config),
            f"{OURS}, {work.title}, texts of {SHORT_TEXT} tokens": forward_gflops(
                OURS, name, config, tokens=SHORT_TEXT
            ),
        }
        peer, ours, _ = counts.values()
        values = {side: [count] * 2 for side, count in counts.items()}
        report("meter_flops", "GFLOP", values, f"{PEER}, {work.title}", options.results)
        if work.gate is not None and peer / ours < work.gate:
            missed.append(f"{work.title}: expected {work.gate}x, got {peer / ours:.3f}x")
    for line in missed:
        print(f"gate missed, {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
