"""Published fine-tuning for detection on COCO.

Command: torchrun --nproc-per-node 8 -m fiber.cli train coco_detection --data DIR --init GROUNDING
Data: DIR/instances_train.json (COCO's instances_train2017.json), and train2017 below DIR/images.
Hardware: published on 16 GPUs, two pictures each.
Expected: AP 58.4 on val2017 (FIBER's README).
"""

import dataclasses

from fiber.recipes import refcoco
from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import GroundingTask, TasksConfig


def recipe() -> RunConfig:
    """The whole run; 24 epochs of 118,287 pictures."""
    base = refcoco.recipe()
    return dataclasses.replace(
        base,
        tasks=TasksConfig(grounding=GroundingTask(share=1, sources=("detection",))),
        data=dataclasses.replace(
            base.data,
            batch_size=32,
            transform=dataclasses.replace(base.data.transform, flip_probability=0.5),
        ),
        optim=dataclasses.replace(base.optim, warmup_fraction=2000 / 88_715),
        train=dataclasses.replace(base.train, steps=88_715),
    )
