"""What recipes of fine-tuning the coarse-stage base model share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fiber.config import preset
from fiber.config_io import replace_fields
from fiber.tasks.transform import RandAugmentConfig, TransformConfig
from fiber.training.config.run import (
    DataConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    ValidationConfig,
)
from fiber.training.config.tasks import TasksConfig


def finetune(
    head: str, tasks: TasksConfig, *, image_size: int, lr: float, changes: Mapping[str, Any]
) -> RunConfig:
    """Configure fine-tuning of one head of the coarse-stage base model.

    The window size is `image_size` / 32, as in the published code. `lr` is the peak learning rate
    of the encoders; the head has 50 times that. `changes` overrides fields by dotted name.
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
        optim=OptimConfig(lr=lr, head_lr_multiplier=50.0, published_coarse=True),
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
