"""Fine-tuning for detection: COCO, LVIS, ODinW and custom classes."""

from __future__ import annotations

import dataclasses

from fiber.config_io import replace_fields
from fiber.recipes.grounding import grounding, refcoco
from fiber.training.config.run import RunConfig, TrainConfig, ValidationConfig
from fiber.training.config.tasks import GroundingTask, TasksConfig


def coco_detection() -> RunConfig:
    """Published fine-tuning for detection on COCO; 24 epochs of 118,287 images.

    Command: torchrun --nproc-per-node 8 -m fiber.cli train coco_detection --data DIR
        --init GROUNDING
    Data: DIR/instances_train.json (COCO's instances_train2017.json), and train2017 in DIR/images.
    Hardware: published on 16 GPUs, two images per GPU.
    Expected: AP 58.4 on val2017 (FIBER's README).
    """
    steps = 88_715
    changes = {
        "tasks.grounding.sources": ("detection",),
        "data.batch_size": 32,
        "data.transform.flip_probability": 0.5,
        "optim.warmup_fraction": 2000 / steps,
        "train.steps": steps,
    }
    return replace_fields(refcoco(), changes)


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
    steps = 75_128
    changes = {
        "tasks.grounding.max_negatives": 85,
        "optim.warmup_fraction": 2000 / steps,
        "train.steps": steps,
    }
    return replace_fields(coco_detection(), changes)


def odinw_full() -> RunConfig:
    """Published fine-tuning on one dataset of ODinW, with all of its images.

    Command: torchrun --nproc-per-node 4 -m fiber.cli train odinw_full --data DIR --init GROUNDING
    Data: the directory of one dataset, with train/annotations_without_background.json and the same
        file of mini_val (EgoHands, VehiclesOpenImages) or valid, next to their images.
    Hardware: published on 4 GPUs, one image per GPU.
    Expected: a mean AP of 65.9 over the test splits of the thirteen datasets (FIBER's README).

    Classes keep the order of the file, as published. Trains at most 200 epochs and evaluates after
    each; the learning rate drops on an AP plateau, and the run then stops early. The published run
    prompts with class names alone, except for Aquarium, whose names have descriptions.
    """
    task = GroundingTask(share=1, sources=("detection",), shuffle_classes=False)
    changes = {
        "tasks": TasksConfig(grounding=task),
        "data.batch_size": 4,
        # From the published configuration files of the datasets.
        "data.transform.shorter_sides": (800,),
        "optim.weight_decay": 0.05,
        "optim.warmup_fraction": 0.0,
        "optim.schedule": "plateau",
        "train": TrainConfig(
            # `epochs` ends the run.
            steps=1_000_000,
            epochs=200,
            checkpoint_epochs=1,
            precision="bfloat16",
            gradient_checkpointing=True,
            seed=10,
        ),
        "validation": ValidationConfig(task="coco", stop_after=8),
    }
    return replace_fields(grounding(), changes)


def odinw_few_shot() -> RunConfig:
    """Published fine-tuning on one dataset of ODinW, with one image per class.

    Command: torchrun --nproc-per-node 4 -m fiber.cli train odinw_few_shot --data DIR
        --init GROUNDING
        For 3, 5 and 10 images per class, as published, add
        --set data.shots=3 --set train.epochs=800 --set train.checkpoint_epochs=4
        --set data.shots=5 --set train.epochs=400 --set train.checkpoint_epochs=2
        --set data.shots=10 --set train.epochs=200 --set train.checkpoint_epochs=1
    Data: as for `odinw_full`. Images are chosen by ascending id, as published. The published
        command's seed does not change them, so each other sample needs its own annotation file.
    Hardware: published on 4 GPUs, one image per GPU.
    Expected: FIBER's README has no number for it.

    A published epoch repeats the images eight times; here that is eight epochs.
    """
    base = odinw_full()
    train = dataclasses.replace(base.train, epochs=1600, checkpoint_epochs=8)
    return replace_fields(base, {"data.shots": 1, "train": train})


def own_detection() -> RunConfig:
    """Detector for your own classes, fine-tuned from a published fine model or your own.

    Command: fiber train own_detection --data DIR --init GROUNDING --output runs/own
    Data: class boxes in COCO format: an export of Roboflow, CVAT, Label Studio or FiftyOne, or COCO
        itself. Without a validation split a fifth of the images is held out.
    Hardware: one GPU with 24 GB or more; `--set train.accumulation=4` for micro-batches of one
        image.
    Expected: depends on the data; there is no published number. Learning rates and
        schedule are those of the published fine-tuning on ODinW-13, whose mean AP is 65.9.

    Trains at most 20,000 steps and evaluates every 250. The learning rate drops on an AP plateau,
    and the run stops after eight evaluations without a new best. GROUNDING is a fine model, with
    `--tokenizer` if its file has none. A coarse model works too, but its detection head is
    untrained.
    """
    changes = {
        "data.transform.shorter_sides": (480, 560, 640, 720, 800),
        "optim.warmup_fraction": 200 / 20_000,
        "train.steps": 20_000,
        "train.epochs": 0.0,
        "train.checkpoint_every": 250,
        "train.checkpoint_epochs": 0.0,
        "validation.pictures": 500,
    }
    return replace_fields(odinw_full(), changes)
