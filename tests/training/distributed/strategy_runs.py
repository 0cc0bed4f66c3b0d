"""Small runs of every task with each strategy of data parallelism."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fiber.config_io import replace_fields
from fiber.data.datasets.snli_ve import ENTAILMENT
from fiber.data.masks.mask import PackedMask
from fiber.data.record import Record
from fiber.tasks.transform import TransformConfig
from fiber.training.config.run import DataConfig, RunConfig, TrainConfig
from fiber.training.config.tasks import (
    EntailmentTask,
    ImageTextTask,
    QuestionTask,
    RankingTask,
    ReasoningTask,
    SegmentationTask,
    TasksConfig,
)
from fiber.training.distributed.shard import supports_cpu
from fiber.training.run_dir import RunFolder
from fiber.training.train import train
from tests.models.xdecoder.test_network import TINY as TINY_SEGMENTER
from tests.training.micro_runs import (
    COLOURS,
    SIDE,
    all_records,
    coarse_config,
    colour_of,
    fine_config,
)
from tests.training.test_meter import TINY
from tests.training.test_meter import config as meter_config

#: Mark of tests that shard.
sharded_on_cpu = pytest.mark.skipif(
    not supports_cpu(), reason=f"FSDP2 of torch {torch.__version__} does not work on a CPU"
)
#: Every task of METER that a small model learns from the pictures of `micro_runs`.
METER_TASKS = TasksConfig(
    image_text=ImageTextTask(share=1, itc=0.0, itm_negatives="random"),
    question=QuestionTask(share=1),
    reasoning=ReasoningTask(share=1),
    entailment=EntailmentTask(share=1),
    ranking=RankingTask(share=1, false_texts=3),
)
METER_HEADS = ("itm", "mlm", "vqa", "nlvr2", "snli", "rank")
#: Masks of the squares of `micro_runs`, by class and by phrase.
MASK_TASK = SegmentationTask(share=1, sources=("expression_masks",), num_points=32, phrase_layers=2)
#: A network whose text encoder takes the texts of classes.
SMALL_SEGMENTER = dataclasses.replace(
    TINY_SEGMENTER,
    heads=("mask",),
    clip_text=dataclasses.replace(TINY_SEGMENTER.clip_text, vocab_size=290, max_positions=60),
)
#: Adam divides each gradient by its own size, so the noise of gradients that are 0 but for rounding
#: would move weights as far as any other gradient. A larger epsilon leaves them where they are.
COMMON = {
    "data.batch_size": 8,
    "train.steps": 10,
    "train.checkpoint_every": 0,
    "optim.eps": 1e-4,
    "optim.lr": 1e-4,
    "optim.warmup_fraction": 0.0,
    "optim.clip_norm": 1.0,
}


def config_of(stage: str, **changes: Any) -> RunConfig:
    """Configuration of ten steps; `changes` by dotted name with __ for dots."""
    if stage == "meter":
        heads = dataclasses.replace(TINY.image_text, heads=METER_HEADS)
        run = meter_config(dataclasses.replace(TINY, image_text=heads), METER_TASKS)
    elif stage == "masks":
        run = RunConfig(
            model=SMALL_SEGMENTER,
            tasks=TasksConfig(segmentation=MASK_TASK),
            data=DataConfig(transform=TransformConfig(kind="scale_jitter", flip_probability=0.5)),
            # Random numbers are those of the samples, whatever rank has them.
            train=TrainConfig(draws="row"),
        )
    elif stage == "fine":
        run = fine_config()
    else:
        # The embeddings of a new model are nearly the same for all inputs, and a low temperature
        # would amplify the rounding of their differences.
        run = coarse_config(model__image_text__temperature=0.5)
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return replace_fields(run, COMMON | {"train.log_every": 1} | named)


def records_of(stage: str, pictures: Path) -> dict[str, list[Record]]:
    """Records of every task of a stage."""
    records = all_records(pictures)
    if stage == "meter":
        pairs = records["image_text"]
        records["ranking"] = pairs
        records["entailment"] = [
            dataclasses.replace(record, answers={ENTAILMENT[n % 3]: 1.0})
            for n, record in enumerate(pairs)
        ]
    if stage == "masks":
        records["segmentation"] = [
            mask_record(n, each) for n, each in enumerate(records["grounding"])
        ]
    return records


def mask_record(number: int, record: Record) -> Record:
    """Return a record of `micro_runs` with the mask of its square, whose class is its color."""
    x0, y0, x1, y1 = map(int, record.boxes_xyxy[0])
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y0:y1, x0:x1] = True
    packed = PackedMask(np.packbits(mask, axis=1).tobytes(), mask.shape)
    color = colour_of(number)
    return Record(
        key=record.key,
        images=record.images,
        text="",
        labels=tuple(COLOURS),
        masks=(packed,),
        mask_labels=(list(COLOURS).index(color),),
        phrases=(f"the {color} square", f"a {color} square"),
        phrase_masks=((0,), (0,)),
    )


def trained(
    pictures: Path, output: Path, stage: str, *, resume: bool = False, **changes: Any
) -> list[dict[str, Any]]:
    """Train; return the losses and the gradient norm of each step."""
    RunFolder.draw = lambda folder, priors: None
    run = config_of(stage, **changes)
    records = records_of(stage, pictures)
    data = {name: records[name] for name in run.tasks.active()}
    options: dict[str, Any] = {"tokenizer": str(pictures / "tokenizer.json"), "threads": 1}
    options["resume"] = resume
    if run.validation.task is not None:
        options["validation"] = records["grounding" if stage == "fine" else "question"][:6]
    finished = train(run, data=data, output=output, quiet=True, device="cpu", **options)
    return [{"gradient_norm": line["gradient_norm"], **line["losses"]} for line in finished.metrics]


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the largest absolute difference of weights.

    Runs whose sums are in another order differ, more than by rounding where a gradient is small,
    since Adam divides by its size. A run in passes of one sample, on one process, shows how much.
    """
    assert ours.keys() == theirs.keys()
    return max((ours[name] - tensor).abs().max().item() for name, tensor in theirs.items())


#: Settings that strategies have to serve, by name, and the stages that have them.
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "plain": (("coarse", "fine", "meter", "masks"), {}),
    "checkpointing": (
        ("coarse", "fine", "meter", "masks"),
        {"train__gradient_checkpointing": True},
    ),
    "accumulation": (("coarse", "fine", "meter", "masks"), {"train__accumulation": 2}),
    # Compared with one process that has all samples in one pass.
    "passes": (("coarse", "fine", "meter"), {"train__samples_per_pass": 1}),
    "frozen": (("coarse", "fine", "meter"), {"optim__frozen": ("backbone.image", "backbone.text")}),
    "frozen and accumulated": (
        ("coarse", "meter"),
        {"optim__frozen": ("backbone.image*", "backbone.text*"), "train__accumulation": 2},
    ),
    # Without fusion, masked tokens do not read the image, whose prefix then has no gradient.
    "no gradient below": (
        ("coarse",),
        {
            "model__fusion__num_fused_layers": 0,
            "model__image_text__heads": ("mlm",),
            "tasks__image_text__itc": 0.0,
            "tasks__image_text__itm": 0.0,
            "tasks__question__share": 0,
            "tasks__reasoning__share": 0,
            "tasks__caption__share": 0,
        },
    ),
    "together": (
        ("coarse", "meter"),
        {
            "tasks__together": True,
            "tasks__image_text__share": 1,
            "tasks__question__batch_size": 4,
            "train__steps": 4,
        },
    ),
    "ema": (("coarse", "fine", "meter", "masks"), {"train__ema_decay": 0.9}),
    "queue": (
        ("coarse",),
        {"tasks__image_text__itc_form": "queue", "tasks__image_text__queue_length": 12},
    ),
    "gold": (
        ("coarse",),
        {"tasks__caption__objective": "gold", "tasks__caption__gold_copy_every": 3},
    ),
    "cider": (("coarse",), {"tasks__caption__objective": "cider"}),
    "muon": (("coarse",), {"optim__muon_lr_multiplier": 2.0}),
    "published": (("coarse",), {"optim__published_coarse": True}),
    # Weights hardly move, since runs that differ in rounding would soon be at different weights.
    # Gradients of the micro detector are not finite in bfloat16, on one process either.
    "bfloat16": (("coarse", "meter"), {"train__precision": "bfloat16", "optim__lr": 1e-9}),
    # What "bfloat16" is compared with, on one process.
    "float32 at the same weights": ((), {"optim__lr": 1e-9}),
    "reduced in bfloat16": (("coarse",), {"train__reduce_precision": "bfloat16"}),
}
#: Ranks of each strategy. Those of "hybrid" are two groups of two.
RANKS = {"replicate": 2, "shard": 2, "hybrid": 4}


def trained_as(
    strategy: str, output: str, pictures: str, stage: str, case: str, steps: int
) -> list[dict[str, Any]]:
    """Train a case with a strategy, as a rank or alone; see `trained`."""
    torch.set_num_threads(1)
    changes = CASES[case][1] | {"train__strategy": strategy, "train__steps": steps}
    if strategy == "hybrid":
        changes["train__shard_size"] = 2
    return trained(Path(pictures), Path(output), stage, **changes)
