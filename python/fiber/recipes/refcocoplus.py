"""Published fine-tuning on RefCOCO+: the one thing that an expression means.

Command: torchrun --nproc-per-node 8 -m fiber.cli train refcocoplus --data DIR --init GROUNDING
Data: DIR with finetune_refcoco+_train.json, and pictures as for `refcoco`.
Hardware: published on 16 GPUs, one picture each.
Expected: accuracy 85.74 / 90.13 / 79.38 on val / testA / testB (FIBER's README), where a box is
    right from a GIoU of 0.5 on.
"""

import dataclasses

from fiber.recipes import refcoco
from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import GroundingTask, TasksConfig


def recipe() -> RunConfig:
    """The whole run; twenty epochs of 120,191 expressions."""
    base, steps = refcoco.recipe(), 150_238
    return dataclasses.replace(
        base,
        tasks=TasksConfig(grounding=GroundingTask(share=1, sources=("refcocoplus",))),
        optim=dataclasses.replace(base.optim, warmup_fraction=2000 / steps),
        train=dataclasses.replace(base.train, steps=steps),
    )
