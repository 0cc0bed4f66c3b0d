"""Published fine-tuning for captions on COCO, by maximum likelihood.

Command: torchrun --nproc-per-node 8 -m fiber.cli train caption_coco --data DIR --init PRETRAINED
Data: DIR/dataset_coco.json with Karpathy's splits, train2014 and val2014 in DIR (or captions in any
    other form of `fiber.data.opening`, a .jsonl of your own among them). Trains on the split
    "train" and keeps the step of the best CIDEr-D on 1,000 pictures of "val"; `--set
    data.split=train+restval` is what most others train on, `caption_coco_published` is what FIBER
    did.
Hardware: published on 8 GPUs with 8 samples a pass.
Expected: FIBER's README gives CIDEr 144.4 on the Karpathy test split after two further stages, GOLD
    (`caption_coco_gold`) and CIDEr-D (`caption_coco_cider`); for this stage alone it gives no
    number.
"""

import dataclasses

from fiber.recipes import vqav2
from fiber.training.config.run import RunConfig, ValidationConfig
from fiber.training.config.tasks import CaptionTask, TasksConfig


def recipe() -> RunConfig:
    """The whole run; ten epochs of 414,113 captions."""
    base = vqav2.recipe()
    return dataclasses.replace(
        base,
        model=vqav2.model_for(("caption",), image_size=576),
        tasks=TasksConfig(caption=CaptionTask(share=1)),
        optim=dataclasses.replace(base.optim, lr=5e-5, head_lr_multiplier=5.0),
        train=dataclasses.replace(base.train, steps=8088),
        validation=ValidationConfig(task="caption", pictures=1000),
    )
