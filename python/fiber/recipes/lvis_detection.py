"""Published fine-tuning for detection of LVIS's 1,203 classes.

Command: torchrun --nproc-per-node 8 -m fiber.cli train lvis_detection --data DIR --init GROUNDING
Data: DIR/lvis_v1_train.json (or lvis_od_train.json, as the published code names it), and COCO's
    train2017 and val2017 below DIR or DIR/images: LVIS names pictures by the end of their address.
Hardware: published on 16 GPUs, two pictures each.
Expected: Fixed AP 56.9 on minival (FIBER's README).

A text holds the classes of its picture and others that are drawn for it, as many as fit and 85 at
most, as published.
"""

import dataclasses

from fiber.recipes import coco_detection
from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import GroundingTask, TasksConfig


def recipe() -> RunConfig:
    """The whole run; 24 epochs of 100,170 pictures."""
    base = coco_detection.recipe()
    steps = 75_128
    return dataclasses.replace(
        base,
        tasks=TasksConfig(
            grounding=GroundingTask(share=1, sources=("detection",), max_negatives=85)
        ),
        optim=dataclasses.replace(base.optim, warmup_fraction=2000 / steps),
        train=dataclasses.replace(base.train, steps=steps),
    )
