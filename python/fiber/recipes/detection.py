"""Fine-tuning for detection: COCO, LVIS, ODinW and custom classes."""

from __future__ import annotations

import dataclasses

from fiber.recipes.grounding import grounding, refcoco
from fiber.training.config.run import DataConfig, RunConfig, TrainConfig, ValidationConfig
from fiber.training.config.tasks import GroundingTask, TasksConfig
from fiber.training.config.transforms import TransformConfig


def coco_detection() -> RunConfig:
    """Published fine-tuning for detection on COCO; 24 epochs of 118,287 images.

    Command: torchrun --nproc-per-node 8 -m fiber.cli train coco_detection --data DIR
        --init GROUNDING
    Data: DIR/instances_train.json (COCO's instances_train2017.json), and train2017 in DIR/images.
    Hardware: published on 16 GPUs, two images per GPU.
    Expected: AP 58.4 on val2017 (FIBER's README).
    """
    base = refcoco()
    return dataclasses.replace(
        base,
        tasks=TasksConfig(grounding=GroundingTask(share=1, sources=("detection",))),
        data=dataclasses.replace(
            base.data,
            batch_size=32,
            transform=dataclasses.replace(base.data.transform, flip_probability=0.5),
        ),
        optim=dataclasses.replace(base.optim, warmup_fraction=2000 / 88_715),
        train=dataclasses.replace(base.train, steps=88_715),
    )


def lvis_detection() -> RunConfig:
    """Published fine-tuning for detection on LVIS, 1,203 classes; 24 epochs of 100,170 images.

    Command: torchrun --nproc-per-node 8 -m fiber.cli train lvis_detection --data DIR
        --init GROUNDING
    Data: DIR/lvis_v1_train.json (or lvis_od_train.json, its name in the published code), and COCO's
        train2017 and val2017 in DIR or DIR/images: LVIS names images by the end of their URL.
    Hardware: published on 16 GPUs, two images per GPU.
    Expected: Fixed AP 56.9 on minival (FIBER's README).

    A prompt has the classes of its image and sampled negative classes, as many as fit and at most
    85, as published.
    """
    base = coco_detection()
    steps = 75_128
    return dataclasses.replace(
        base,
        tasks=TasksConfig(
            grounding=GroundingTask(share=1, sources=("detection",), max_negatives=85)
        ),
        optim=dataclasses.replace(base.optim, warmup_fraction=2000 / steps),
        train=dataclasses.replace(base.train, steps=steps),
    )


def odinw_full() -> RunConfig:
    """Published fine-tuning on one data set of ODinW, with all of its images.

    Command: torchrun --nproc-per-node 4 -m fiber.cli train odinw_full --data DIR --init GROUNDING
    Data: the directory of one data set, with train/annotations_without_background.json and the same
        file of mini_val (EgoHands, VehiclesOpenImages) or valid, next to their images.
    Hardware: published on 4 GPUs, one image per GPU.
    Expected: a mean AP of 65.9 over the test splits of the thirteen data sets (FIBER's README).

    Classes are in the order of the file, as published. At most 200 epochs, evaluated after each.
    The learning rate falls when AP stops rising, then the run ends. The published run uses the
    class names alone as prompts, except for Aquarium, whose names have descriptions.
    """
    base = grounding()
    return RunConfig(
        model=base.model,
        tasks=TasksConfig(
            grounding=GroundingTask(share=1, sources=("detection",), shuffle_classes=False)
        ),
        data=DataConfig(
            batch_size=4,
            # From the published configuration files of the data sets.
            transform=TransformConfig(
                kind="shorter_side", shorter_sides=(800,), flip_probability=0.5
            ),
        ),
        optim=dataclasses.replace(
            base.optim,
            weight_decay=0.05,
            warmup_fraction=0.0,
            schedule="plateau",
            plateau_patience=3,
            plateau_least_lr=1e-6,
        ),
        train=TrainConfig(
            # `epochs` ends the run.
            steps=1_000_000,
            epochs=200,
            checkpoint_epochs=1,
            precision="bfloat16",
            gradient_checkpointing=True,
            log_every=20,
            seed=10,
        ),
        validation=ValidationConfig(task="coco", stop_after=8),
    )


def odinw_few_shot() -> RunConfig:
    """Published fine-tuning on one data set of ODinW, with one image per class.

    Command: torchrun --nproc-per-node 4 -m fiber.cli train odinw_few_shot --data DIR
        --init GROUNDING
        For 3, 5 and 10 images per class, as published, add
        --set data.shots=3 --set train.epochs=800 --set train.checkpoint_epochs=4
        --set data.shots=5 --set train.epochs=400 --set train.checkpoint_epochs=2
        --set data.shots=10 --set train.epochs=200 --set train.checkpoint_epochs=1
    Data: as for `odinw_full`. Images are chosen by ascending id, as published. The seed of the
        published command does not change them, so several samples need files of their own.
    Hardware: published on 4 GPUs, one image per GPU.
    Expected: FIBER's README has no number for it.

    A published epoch repeats the images eight times; here that is eight epochs.
    """
    base = odinw_full()
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, shots=1),
        train=dataclasses.replace(base.train, epochs=1600, checkpoint_epochs=8),
    )


def own_detection() -> RunConfig:
    """Detector of your own classes, fine-tuned from a published or own fine model.

    Command: fiber train own_detection --data DIR --init GROUNDING --output runs/own
    Data: class boxes in COCO format: an export of Roboflow, CVAT, Label Studio or FiftyOne, or COCO
        itself. Without a validation split a fifth of the images is held out.
    Hardware: one GPU with 24 GB or more; `--set train.accumulation=4` for micro-batches of one
        image.
    Expected: depends on the data; there is no published number. The published fine-tuning on the
        thirteen data sets of ODinW, whose learning rates and schedule this uses, has a mean AP of
        65.9.

    At most 20,000 steps, evaluated every 250. The learning rate falls when AP stops rising, and the
    run ends after eight evaluations without a new best, so its length need not be chosen. GROUNDING
    is a fine model, with `--tokenizer` if its file has none. A coarse model works too, but has no
    trained detection head.
    """
    base = odinw_full()
    return dataclasses.replace(
        base,
        data=dataclasses.replace(
            base.data,
            transform=dataclasses.replace(
                base.data.transform, shorter_sides=(480, 560, 640, 720, 800)
            ),
        ),
        optim=dataclasses.replace(base.optim, warmup_fraction=200 / 20_000),
        train=dataclasses.replace(
            base.train, steps=20_000, epochs=0.0, checkpoint_every=250, checkpoint_epochs=0.0
        ),
        validation=dataclasses.replace(base.validation, pictures=500),
    )
