"""Coarse-stage pre-training."""

from __future__ import annotations

from fiber.config import preset
from fiber.config_io import replace_fields
from fiber.training.config.run import (
    DataConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from fiber.training.config.tasks import ImageTextTask, TasksConfig


def pretrain() -> RunConfig:
    """Published coarse-stage pre-training: ITC, ITM and MLM on four million images.

    Command: fiber train pretrain --data DIR --init ENCODERS --processes 8
    Data: DIR/captions_train.json in COCO format, with the captions of COCO, Visual Genome, SBU and
        Conceptual Captions, and their images in DIR/images. To read the downloaded datasets
        from one folder (or the published Arrow files), use
        --set tasks.image_text.sources=coco_karpathy,visual_genome,sbu,conceptual_captions
    Hardware: the published run used 64 GPUs, 8 samples per GPU. On fewer, add
        `--set train.samples_per_pass=8`: a step is the same in any number of passes.
    Expected: no metric of its own; `vqav2`, `nlvr2`, `retrieval_coco` and `caption_coco` start from
        this model. Hyperparameters are those of task_pretrain_mlm_itm_itc in the published code,
        whose ITC loss uses a queue of 4,096 older samples (see `pretrain_published`, which also
        trains in float32). This recipe computes ITC over the micro-batches of all processes.
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
    """Published coarse-stage pre-training in float32, with an ITC queue and two COCO splits.

    Command: fiber train pretrain_published --data DIR --init ENCODERS --processes 8
    Data: as for `pretrain`, plus DIR/captions_val.json with the COCO val captions. Trains on
        Karpathy's COCO splits "train" and "val" and skips "restval", as in the published run.
        Visual Genome and SBU have only a training split. The validation file of Conceptual
        Captions, which the published run did not use, is read if it is in DIR.
    Hardware: as for `pretrain`. The queue's 4,096 images take 7.25 GB on every GPU and in every
        checkpoint. A step costs a quarter more than in `pretrain`, since the older images used as
        negatives are encoded again.
    Expected: no metric of its own, as for `pretrain`. Empty queue slots are ignored; the published
        code initializes them with random vectors.
    """
    changes = {
        "tasks.image_text.itc_form": "queue",
        "data.split": "train+val",
        "train.precision": "float32",
    }
    return replace_fields(pretrain(), changes)
