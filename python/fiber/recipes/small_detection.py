"""Small detector of your own classes, from any folder in COCO format.

Command: fiber train small_detection --data DIR --output runs/own
Data: boxes of classes in any form that `fiber.data.coco_folders` knows: an export of COCO format by
    Roboflow, CVAT, Label Studio or FiftyOne, a set of ODinW, or COCO itself. Without a validation
    split a fifth of the pictures is held out.
Hardware: two CPU cores.
Expected: finds things on pictures like those that it trained on, see docs/detection.md. There
    is no published number. Pictures are shrunk to a shorter side of 128 pixels, so that things must
    be large in them; `own_detection` is the recipe for real work.

The model starts from nothing and knows no word but the names of the classes, which are asked for in
the order of the file, as in measuring.
"""

import dataclasses

from fiber.config import FiberConfig, preset
from fiber.training.config.run import (
    DataConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    ValidationConfig,
)
from fiber.training.config.tasks import GroundingTask, TasksConfig
from fiber.training.config.transforms import TransformConfig


def recipe() -> RunConfig:
    """The whole run."""
    return RunConfig(
        model=detector(),
        tasks=TasksConfig(
            grounding=GroundingTask(
                share=1, sources=("detection",), max_classes=24, shuffle_classes=False
            )
        ),
        data=DataConfig(
            batch_size=16,
            train_tokenizer=True,
            transform=TransformConfig(
                kind="shorter_side",
                shorter_sides=(96, 112, 128, 144),
                max_size=224,
                flip_probability=0.5,
            ),
        ),
        optim=OptimConfig(
            lr=5e-4, head_lr_multiplier=2.0, cross_modal_lr_multiplier=1.0, clip_norm=1.0
        ),
        train=TrainConfig(steps=600, log_every=20, checkpoint_every=100),
        validation=ValidationConfig(task="coco", pictures=200),
    )


def detector() -> FiberConfig:
    """The small detector for longer texts and larger pictures."""
    small = preset("small", stage="fine")
    return dataclasses.replace(
        small,
        max_tokens=small.roberta.max_tokens,
        detector=dataclasses.replace(small.detector, shorter_side=128, max_size=224),
    )
