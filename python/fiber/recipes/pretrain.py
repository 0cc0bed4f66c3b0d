"""Coarse pre-training, and the base of coarse fine-tuning recipes."""

from __future__ import annotations

import dataclasses

from fiber.config import preset
from fiber.training.config.run import (
    DataConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    ValidationConfig,
)
from fiber.training.config.tasks import ImageTextTask, TasksConfig
from fiber.training.config.transforms import RandAugmentConfig, TransformConfig


def pretrain() -> RunConfig:
    """Published coarse pre-training: ITC, ITM and MLM on four million images.

    Command: torchrun --nproc-per-node 8 -m fiber.cli train pretrain --data DIR --init ENCODERS
    Data: DIR/captions_train.json in COCO format, with the captions of COCO, Visual Genome, SBU and
        Conceptual Captions, and their images in DIR/images. The original downloads in one directory
        (or the published Arrow files) are read with
        --set tasks.image_text.sources=coco_karpathy,visual_genome,sbu,conceptual_captions
    Hardware: published on 64 GPUs, 8 samples per GPU. `train.accumulation` times the number of
        processes times the samples of a micro-batch must be `data.batch_size`.
    Expected: no metric of its own; `vqav2`, `nlvr2`, `retrieval_coco` and `caption_coco` start from
        it. Hyper-parameters: configuration task_pretrain_mlm_itm_itc of the published code, whose
        ITC loss uses a queue of 4,096 older samples (`pretrain_published`, also in float32). Here
        it uses the whole micro-batch of all processes.
    """
    return RunConfig(
        model=preset("base"),
        tasks=TasksConfig(image_text=ImageTextTask(share=1)),
        data=DataConfig(batch_size=4096),
        optim=OptimConfig(lr=1e-5, published_coarse=True),
        train=TrainConfig(
            steps=100_000,
            accumulation=8,
            precision="bfloat16",
            log_every=50,
            checkpoint_every=2500,
        ),
    )


def pretrain_published() -> RunConfig:
    """Published coarse pre-training: float32, ITC queue, two splits of COCO.

    Command: torchrun --nproc-per-node 8 -m fiber.cli train pretrain_published --data DIR
        --init ENCODERS
    Data: as for `pretrain`, and DIR/captions_val.json with the captions of COCO val. Trains on
        Karpathy's "train" and "val" of COCO together and skips "restval", as published. Of Visual
        Genome and SBU only the training split exists and is read; of Conceptual Captions the
        validation file is also read if it is in DIR, which the published run did not use.
    Hardware: as for `pretrain`. The queue's 4,096 images take 7.25 GB on every GPU and in every
        checkpoint. A step costs a quarter more than one of `pretrain`, since negatives are older
        images that are encoded again.
    Expected: no metric of its own, as for `pretrain`. Queue slots without a pair yet are ignored;
        the published code starts with random vectors in them.
    """
    base = pretrain()
    task = ImageTextTask(share=1, itc_form="queue", queue_length=4096)
    return dataclasses.replace(
        base,
        tasks=TasksConfig(image_text=task),
        data=dataclasses.replace(base.data, split="train+val"),
        train=dataclasses.replace(base.train, precision="float32"),
    )


def finetune(head: str, tasks: TasksConfig, *, image_size: int) -> RunConfig:
    """Return the common configuration of the coarse fine-tuning recipes, without a schedule.

    Args:
        head: the trained head of the base model.
        tasks: the task of that head.
        image_size: height and width in pixels; the window size is `image_size` / 32, as published.
    """
    base = preset("base")
    model = dataclasses.replace(
        base,
        image_size=image_size,
        max_tokens=50,
        swin=dataclasses.replace(base.swin, window_size=image_size // 32),
        image_text=dataclasses.replace(base.image_text, heads=(head,)),
    )
    return RunConfig(
        model=model,
        tasks=tasks,
        data=DataConfig(
            batch_size=512,
            transform=TransformConfig(
                kind="crop", flip_probability=0.5, rand_augment=RandAugmentConfig(num_ops=2)
            ),
        ),
        optim=OptimConfig(lr=2e-5, head_lr_multiplier=50.0, published_coarse=True),
        train=TrainConfig(
            accumulation=8, precision="bfloat16", log_every=50, checkpoint_every=1000
        ),
    )


def as_published(base: RunConfig, *, steps: int) -> RunConfig:
    """Return a variant on the published splits: train and val together, float32, last checkpoint.

    Args:
        base: the recipe that holds out "val" to select a checkpoint.
        steps: optimizer steps of the same number of epochs.
    """
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, split="train+val"),
        train=dataclasses.replace(base.train, steps=steps, precision="float32"),
        validation=ValidationConfig(),
    )
