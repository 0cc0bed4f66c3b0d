"""Published fine-tuning for captions on COCO, second stage, on the published splits.

Command: torchrun --nproc-per-node 8 -m fiber.cli train caption_coco_gold_published --data DIR
    --init MODEL
Data: as for `caption_coco_published`; MODEL is the stage before.
Hardware: published on 8 GPUs with 8 samples a pass.
Expected: FIBER's README gives no number for this stage. A caption's loss is divided by its padding,
    as in the published code.
"""

import dataclasses

from fiber.recipes import caption_coco_gold, caption_coco_published
from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import TasksConfig


def recipe() -> RunConfig:
    """The whole run; ten epochs of 439,000 captions."""
    base = caption_coco_published.recipe()
    stage = caption_coco_gold.recipe()
    task = dataclasses.replace(stage.tasks.caption, gold_divisor="padding")
    return dataclasses.replace(base, tasks=TasksConfig(caption=task), optim=stage.optim)
