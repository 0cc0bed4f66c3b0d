"""Published fine-tuning on RefCOCOg: the one thing that an expression means.

Command: torchrun --nproc-per-node 8 -m fiber.cli train refcocog --data DIR --init GROUNDING
Data: DIR with finetune_refcocog_train.json, and pictures as for `refcoco`.
    The published test file is a corrected one, finetune_refcocog_test_corrected.json, which MDETR's
    archive does not hold; it is read before the other one where it is there.
Hardware: published on 16 GPUs, one picture each.
Expected: accuracy 87.11 / 87.32 on val / test (FIBER's README), where a box is
    right from a GIoU of 0.5 on.
"""

import dataclasses

from fiber.recipes import refcoco
from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import GroundingTask, TasksConfig


def recipe() -> RunConfig:
    """The whole run; twenty epochs of 80,512 expressions."""
    base, steps = refcoco.recipe(), 100_640
    return dataclasses.replace(
        base,
        tasks=TasksConfig(grounding=GroundingTask(share=1, sources=("refcocog",))),
        optim=dataclasses.replace(base.optim, warmup_fraction=2000 / steps),
        train=dataclasses.replace(base.train, steps=steps),
    )
