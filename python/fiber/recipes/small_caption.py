"""Fine-tuning a small model on a CPU: captions, by maximum likelihood.

Command: fiber train small_caption --data runs/scenes --init runs/demo/coarse
Data: a folder of `fiber data`, or captions in any other form of `fiber.data.opening` (a .jsonl of
    your own among them).
Hardware: two CPU cores, minutes.
Expected: docs/results.md, for scenes and stamps.
"""

import dataclasses

from fiber.recipes import small_vqa
from fiber.training.config.run import RunConfig, ValidationConfig
from fiber.training.config.tasks import CaptionTask, TasksConfig


def recipe() -> RunConfig:
    """The whole run."""
    base = small_vqa.recipe()
    return dataclasses.replace(
        base,
        model=small_vqa.model_for("caption"),
        tasks=TasksConfig(caption=CaptionTask(share=1)),
        train=dataclasses.replace(base.train, steps=300, checkpoint_every=150),
        validation=ValidationConfig(task="caption", pictures=200),
    )
