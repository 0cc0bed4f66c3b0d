"""Published fine-tuning for captions on COCO, third stage: self-critical (CIDEr-D).

Command: torchrun --nproc-per-node 8 -m fiber.cli train caption_coco_cider --data DIR --init GOLD
Data: as for `caption_coco`; it starts from the finished model of `caption_coco_gold`. Document
    frequencies are counted from the training captions. The published run read them from
    coco-train-words.p, which was not published with it; whoever has such a file gives it with
    `--set tasks.caption.cider_frequencies=FILE`.
Hardware: published on 8 GPUs with 8 samples a pass; each pass also writes five captions a picture.
Expected: FIBER's README gives CIDEr 144.4 on the Karpathy test split after this stage.
"""

import dataclasses

from fiber.recipes import caption_coco
from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import CaptionTask, TasksConfig


def recipe() -> RunConfig:
    """The whole run; ten epochs of 414,113 captions."""
    base = caption_coco.recipe()
    task = CaptionTask(
        share=1,
        objective="cider",
        cider_share=0.7,
        cider_samples=5,
        cider_baseline="constant",
    )
    return dataclasses.replace(
        base,
        tasks=TasksConfig(caption=task),
        optim=dataclasses.replace(base.optim, lr=1e-6),
    )
