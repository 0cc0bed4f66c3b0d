"""Published fine-tuning for captions on COCO, on the published splits.

Command: torchrun --nproc-per-node 8 -m fiber.cli train caption_coco_published --data DIR --init
    MODEL
Data: as for `caption_coco`. Trains on Karpathy's "train" and "val" together and leaves "restval"
    out; the published code calls the test split "val" and chooses its checkpoint there, so its
    figures are not those of unseen pictures. Here nothing is chosen: the last checkpoint is the
    model.
Hardware: published on 8 GPUs with 8 samples a pass.
Expected: as for `caption_coco`.
"""

import dataclasses

from fiber.recipes import caption_coco
from fiber.training.config.run import RunConfig, ValidationConfig


def recipe() -> RunConfig:
    """The whole run; ten epochs of 439,000 captions."""
    base = caption_coco.recipe()
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, split="train+val"),
        train=dataclasses.replace(base.train, steps=8574, precision="float32"),
        validation=ValidationConfig(),
    )
