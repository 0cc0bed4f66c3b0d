"""Fine-tuning a small model on a CPU: whether a text fits a picture.

Command: fiber train small_matching --data runs/scenes --init runs/demo/coarse
Data: a folder of `fiber data`, or captions in any other form of `fiber.data.opening` (a .jsonl of
    your own among them).
Hardware: two CPU cores, minutes.
Expected: docs/results.md, for scenes and stamps.
"""

import dataclasses

from fiber.recipes import small_vqa
from fiber.training.config.run import RunConfig, ValidationConfig
from fiber.training.config.tasks import ImageTextTask, TasksConfig


def recipe() -> RunConfig:
    """The whole run."""
    base = small_vqa.recipe()
    return dataclasses.replace(
        base,
        model=small_vqa.model_for("itm"),
        tasks=TasksConfig(
            image_text=ImageTextTask(share=1, itc=0.0, mlm=0.0, itm_negatives="random")
        ),
        train=dataclasses.replace(base.train, steps=300),
        validation=ValidationConfig(task="matching", pictures=200),
    )
