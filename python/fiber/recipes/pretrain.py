"""Coarse-stage pre-training, and the base of coarse-stage fine-tuning recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fiber.config import preset
from fiber.config_io import replace_fields
from fiber.training.config.run import (
    DataConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    ValidationConfig,
)
from fiber.training.config.tasks import ImageTextTask, TasksConfig
from fiber.training.config.transforms import RandAugmentConfig, TransformConfig


def pretrain() -> RunConfig:
    """Published coarse-stage pre-training: ITC, ITM and MLM on four million images.

    Command: fiber train pretrain --data DIR --init ENCODERS --processes 8
    Data: DIR/captions_train.json in COCO format, with the captions of COCO, Visual Genome, SBU and
        Conceptual Captions, and their images in DIR/images. To read the downloaded datasets
        from one folder (or the published Arrow files), use
        --set tasks.image_text.sources=coco_karpathy,visual_genome,sbu,conceptual_captions
    Hardware: the published run used 64 GPUs, 8 samples per GPU. On fewer, add
        `--set train.samples_per_pass=8`: a step is the same in any number of passes.
    Expected: no metric of its own; `vqav2`, `nlvr2`, `retrieval_coco` and `caption_coco` start from
        this model. Hyperparameters are those of task_pretrain_mlm_itm_itc in the published code,
        whose ITC loss uses a queue of 4,096 older samples (see `pretrain_published`, which also
        trains in float32). This recipe computes ITC over the micro-batches of all processes.
    """
    return RunConfig(
        model=preset("base"),
        tasks=TasksConfig(image_text=ImageTextTask(share=1)),
        data=DataConfig(batch_size=4096),
        optim=OptimConfig(lr=1e-5, published_coarse=True),
        train=TrainConfig(
            steps=100_000,
            accumulation=8,
            precision="bfloat16",
            log_every=50,
            checkpoint_every=2500,
        ),
    )


def pretrain_published() -> RunConfig:
    """Published coarse-stage pre-training in float32, with an ITC queue and two COCO splits.

    Command: fiber train pretrain_published --data DIR --init ENCODERS --processes 8
    Data: as for `pretrain`, plus DIR/captions_val.json with the COCO val captions. Trains on
        Karpathy's COCO splits "train" and "val" and skips "restval", as in the published run.
        Visual Genome and SBU have only a training split. The validation file of Conceptual
        Captions, which the published run did not use, is read if it is in DIR.
    Hardware: as for `pretrain`. The queue's 4,096 images take 7.25 GB on every GPU and in every
        checkpoint. A step costs a quarter more than in `pretrain`, since the older images used as
        negatives are encoded again.
    Expected: no metric of its own, as for `pretrain`. Empty queue slots are ignored; the published
        code initializes them with random vectors.
    """
    changes = {
        "tasks.image_text.itc_form": "queue",
        "data.split": "train+val",
        "train.precision": "float32",
    }
    return replace_fields(pretrain(), changes)


def finetune(
    head: str, tasks: TasksConfig, *, image_size: int, changes: Mapping[str, Any]
) -> RunConfig:
    """Configure fine-tuning of one head of the coarse-stage base model.

    The window size is `image_size` / 32, as in the published code. `changes` overrides fields by
    dotted name.
    """
    base = preset("base")
    model = dataclasses.replace(
        base,
        image_size=image_size,
        max_tokens=50,
        swin=dataclasses.replace(base.swin, window_size=image_size // 32),
        image_text=dataclasses.replace(base.image_text, heads=(head,)),
    )
    config = RunConfig(
        model=model,
        tasks=tasks,
        data=DataConfig(
            batch_size=512,
            transform=TransformConfig(
                kind="crop", flip_probability=0.5, rand_augment=RandAugmentConfig(num_ops=2)
            ),
        ),
        optim=OptimConfig(lr=2e-5, head_lr_multiplier=50.0, published_coarse=True),
        train=TrainConfig(
            accumulation=8, precision="bfloat16", log_every=50, checkpoint_every=1000
        ),
    )
    return replace_fields(config, changes)


def as_published(
    base: RunConfig, *, steps: int, changes: Mapping[str, Any] | None = None
) -> RunConfig:
    """Configure `base` to train on train and val in float32, and to keep the last checkpoint.

    `steps` should amount to the same number of epochs on the larger data. `changes` overrides other
    fields by dotted name.
    """
    published = {
        "data.split": "train+val",
        "train.steps": steps,
        "train.precision": "float32",
        "validation": ValidationConfig(),
    }
    return replace_fields(base, published | dict(changes or {}))
