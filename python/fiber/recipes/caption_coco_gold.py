"""Published fine-tuning for captions on COCO, second stage: off-policy (GOLD).

Command: torchrun --nproc-per-node 8 -m fiber.cli train caption_coco_gold --data DIR --init CAPTIONS
Data: as for `caption_coco`, whose finished model it starts from.
Hardware: published on 8 GPUs with 8 samples a pass; a frozen copy of the model runs beside it.
Expected: FIBER's README gives no number for this stage. The published code divides a caption's loss
    by its padding; this one by its tokens (`caption_coco_gold_published` as published).
"""

import dataclasses

from fiber.recipes import caption_coco
from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import CaptionTask, TasksConfig


def recipe() -> RunConfig:
    """The whole run; ten epochs of 414,113 captions."""
    base = caption_coco.recipe()
    return dataclasses.replace(
        base,
        tasks=TasksConfig(caption=CaptionTask(share=1, objective="gold", gold_copy_every=1000)),
        optim=dataclasses.replace(base.optim, lr=1e-5),
    )
