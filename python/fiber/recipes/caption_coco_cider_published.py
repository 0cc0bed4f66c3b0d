"""Published fine-tuning for captions on COCO, third stage, on the published splits.

Command: torchrun --nproc-per-node 8 -m fiber.cli train caption_coco_cider_published --data DIR
    --init MODEL
Data: as for `caption_coco_published`; MODEL is the stage before.
Hardware: published on 8 GPUs with 8 samples a pass.
Expected: FIBER's README gives CIDEr 144.4 on the Karpathy test split after this stage. Document
    frequencies are counted from the training captions, unless the published file of them is given
    (see `caption_coco_cider`).
"""

import dataclasses

from fiber.recipes import caption_coco_cider, caption_coco_published
from fiber.training.config.run import RunConfig


def recipe() -> RunConfig:
    """The whole run; ten epochs of 439,000 captions."""
    base = caption_coco_published.recipe()
    stage = caption_coco_cider.recipe()
    return dataclasses.replace(base, tasks=stage.tasks, optim=stage.optim)
