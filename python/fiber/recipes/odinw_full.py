"""Published fine-tuning on a set of ODinW, with all of its pictures.

Command: torchrun --nproc-per-node 4 -m fiber.cli train odinw_full --data DIR --init GROUNDING
Data: the folder of one set, with train/annotations_without_background.json and the same of
    mini_val (EgoHands, VehiclesOpenImages) or valid, pictures beside them.
Hardware: published on 4 GPUs, one picture each.
Expected: a mean AP of 65.9 over the test splits of the thirteen sets (FIBER's README).

Classes stand in the order of the file, as published. At most 200 passes, measured after each; AP
that does not rise slows the run down, then ends it. The published run asks for the classes by name
alone but for Aquarium, whose names have descriptions.
"""

import dataclasses

from fiber.recipes import grounding
from fiber.training.config.run import DataConfig, RunConfig, TrainConfig, ValidationConfig
from fiber.training.config.tasks import GroundingTask, TasksConfig
from fiber.training.config.transforms import TransformConfig


def recipe() -> RunConfig:
    """The whole run; its length in steps depends on the set."""
    base = grounding.recipe()
    return RunConfig(
        model=base.model,
        tasks=TasksConfig(
            grounding=GroundingTask(share=1, sources=("detection",), shuffle_classes=False)
        ),
        data=DataConfig(
            batch_size=4,
            # The published configurations of the sets.
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
