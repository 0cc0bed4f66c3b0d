"""Fine-tuning a small model on a CPU: finding pictures by texts, by contrast alone.

Command: fiber train small_retrieval --data runs/scenes --init runs/demo/coarse
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
        model=small_vqa.model_for("itc"),
        tasks=TasksConfig(image_text=ImageTextTask(share=1, itm=0.0, mlm=0.0)),
        train=dataclasses.replace(base.train, steps=300),
        validation=ValidationConfig(task="retrieval", pictures=500),
    )
