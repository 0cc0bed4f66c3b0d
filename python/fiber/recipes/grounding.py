"""Fine pre-training: boxes for the phrases of captions and for class names.

Command: torchrun --nproc-per-node 8 -m fiber.cli train grounding --data DIR --init PRETRAINED
Data: DIR with MDETR's final_mixed_train_no_coco.json and final_flickr_separateGT_train.json (there
    or in DIR/mdetr_annotations), objects365_train*.yaml with its TSV files (there or in
    DIR/Objects365), and the pictures: refcoco/train2014, gqa/images,
    flickr30k/flickr30k_images/train. `--set tasks.grounding.sources=phrases,detection` reads
    flickr_train.json and COCO's boxes alone.
Hardware: published on 64 GPUs, one picture each.
Expected: zero-shot, AP 49.3 on COCO val2017 and recall at 1 of 87.4 on the phrases of the Flickr30k
    test split (FIBER's README).

The three sets are joined and drawn from evenly, as published. A text for Objects365 holds classes
of its picture and others that are drawn for it, with the released numbers; the published code
refuses the fourth of its chances, see `fiber.data.prompt_rules` for what it does here.
Parameter groups, schedule, clipping, average and frozen layers are the published ones. Pictures are
RGB, as the coarse model was trained; the published fine stage reads BGR with RGB-trained weights.
"""

import dataclasses

from fiber.config import FiberConfig, preset
from fiber.training.config.run import DataConfig, OptimConfig, RunConfig, TrainConfig
from fiber.training.config.tasks import GroundingTask, TasksConfig
from fiber.training.config.transforms import TransformConfig


def recipe() -> RunConfig:
    """The whole run."""
    return RunConfig(
        model=detector(),
        tasks=TasksConfig(
            grounding=GroundingTask(
                share=1,
                sources=("mixed", "phrases", "objects365"),
                max_negatives=85,
                negative_chances=(0.05, 0.05, 0.5, 0.2),
            )
        ),
        data=DataConfig(
            batch_size=64,
            transform=TransformConfig(kind="shorter_side", flip_probability=0.5),
        ),
        optim=OptimConfig(
            lr=1e-4,
            weight_decay=0.01,
            betas=(0.9, 0.999),
            head_lr_multiplier=1.0,
            cross_modal_lr_multiplier=1.0,
            text_lr_multiplier=0.1,
            bias_lr_multiplier=2.0,
            decay_vectors=True,
            warmup_fraction=5000 / 800_000,
            warmup_start=0.001,
            schedule="multistep",
            clip_norm=1.0,
            frozen=("backbone.image.patch_embedding", "backbone.image.stages.0"),
        ),
        train=TrainConfig(
            steps=800_000,
            precision="bfloat16",
            ema_decay=0.999,
            log_every=100,
            checkpoint_every=2500,
        ),
    )


def detector() -> FiberConfig:
    """The base detector with the stochastic depth of the fine stage."""
    base = preset("base", stage="fine")
    return dataclasses.replace(base, swin=dataclasses.replace(base.swin, drop_path=0.4))
