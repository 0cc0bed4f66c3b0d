"""Fine-tuning for detection: COCO, LVIS, ODinW and custom classes."""

from __future__ import annotations

import dataclasses

from fiber.config_io import replace_fields
from fiber.recipes.grounding import grounding, refcoco
from fiber.training.config.run import RunConfig, TrainConfig, ValidationConfig
from fiber.training.config.tasks import GroundingTask, TasksConfig


def coco_detection() -> RunConfig:
    """Published COCO detection fine-tuning for 24 epochs of 118,287 images.

    Command: fiber train coco_detection --data DIR --init GROUNDING --processes 8
    Data: DIR/instances_train.json (COCO's instances_train2017.json), and train2017 in DIR/images.
    Hardware: the published run used 16 GPUs, two images per GPU.
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
    """Published LVIS detection fine-tuning on 1,203 classes for 24 epochs of 100,170 images.

    Command: fiber train lvis_detection --data DIR --init GROUNDING --processes 8
    Data: DIR/lvis_v1_train.json (or lvis_od_train.json, its name in the published code), and COCO's
        train2017 and val2017 in DIR or DIR/images. LVIS images are located by the last two parts of
        their URL.
    Hardware: the published run used 16 GPUs, two images per GPU.
    Expected: Fixed AP 56.9 on minival (FIBER's README).

    As in the published run, a prompt contains the classes of its image, and as many sampled
    negative classes as fit (at most 85).
    """
    steps = 75_128
    changes = {
        "tasks.grounding.max_negatives": 85,
        "optim.warmup_fraction": 2000 / steps,
        "train.steps": steps,
    }
    return replace_fields(coco_detection(), changes)


def odinw_full() -> RunConfig:
    """Published fine-tuning on one ODinW dataset, with all of its images.

    Command: fiber train odinw_full --data DIR --init GROUNDING --processes 4
    Data: the folder of one dataset, with annotations_without_background.json and the images in both
        train and valid (or mini_val, for EgoHands and VehiclesOpenImages).
    Hardware: the published run used 4 GPUs, one image per GPU.
    Expected: a mean AP of 65.9 over the test splits of the thirteen datasets (FIBER's README).

    Trains for at most 200 epochs and evaluates after each. The learning rate drops when AP
    plateaus, and the run stops after eight evaluations in a row below the best AP. Prompts list the
    class names in file order, as in the published code; the published prompts for Aquarium also
    describe the classes.
    """
    task = GroundingTask(share=1, sources=("detection",), shuffle_classes=False)
    changes = {
        "tasks": TasksConfig(grounding=task),
        "data.batch_size": 4,
        # From the published config files of the individual datasets.
        "data.transform.shorter_sides": (800,),
        "optim.weight_decay": 0.05,
        "optim.warmup_fraction": 0.0,
        "optim.schedule": "plateau",
        "train": TrainConfig(
            # Not reached: `epochs` ends the run.
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
    """Published fine-tuning on one ODinW dataset, with one image per class.

    Command: fiber train odinw_few_shot --data DIR --init GROUNDING --processes 4
        For the other published settings (3, 5 or 10 images per class), add one of these lines:
        --set data.shots=3 --set train.epochs=800 --set train.checkpoint_epochs=4
        --set data.shots=5 --set train.epochs=400 --set train.checkpoint_epochs=2
        --set data.shots=10 --set train.epochs=200 --set train.checkpoint_epochs=1
    Data: as for `odinw_full`. Images are chosen in ascending id order, as in the published code,
        and do not depend on the seed. To train on different images, pass your own annotation file.
    Hardware: the published run used 4 GPUs, one image per GPU.
    Expected: FIBER's README gives no number for this setting.

    The published code repeats the images eight times per epoch, so one of its epochs corresponds to
    eight epochs here.
    """
    base = odinw_full()
    train = dataclasses.replace(base.train, epochs=1600, checkpoint_epochs=8)
    return replace_fields(base, {"data.shots": 1, "train": train})


def own_detection() -> RunConfig:
    """Detector for your own classes, fine-tuned from a fine-stage model (published or your own).

    Command: fiber train own_detection --data DIR --init GROUNDING --output runs/own
    Data: class-labeled boxes in COCO format: an export from Roboflow, CVAT, Label Studio or
        FiftyOne, or COCO itself. Without a validation split, a fifth of the images is held out.
    Hardware: one GPU with 24 GB or more; add `--set train.samples_per_pass=1` for one image at a
        time.
    Expected: depends on the data; there is no published number. Learning rates and schedule are
        those of the published ODinW-13 fine-tuning, which reaches a mean AP of 65.9.

    Trains for at most 20,000 steps and evaluates every 250 steps. The learning rate drops when AP
    plateaus, and the run stops after eight evaluations in a row below the best AP. GROUNDING is a
    fine-stage model; add `--tokenizer` if it comes without a tokenizer. A coarse-stage model also
    works, but the detection head then starts untrained.
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
