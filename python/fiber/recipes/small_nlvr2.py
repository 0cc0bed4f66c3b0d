"""Fine-tuning a small model on a CPU: whether a statement is true of two pictures.

Command: fiber train small_nlvr2 --data runs/scenes --init runs/demo/coarse
Data: a folder of `fiber data`, or statements in any other form of `fiber.data.opening`.
Hardware: two CPU cores, minutes.
Expected: docs/results.md, for scenes and stamps.
"""

import dataclasses

from fiber.recipes import small_vqa
from fiber.training.config.run import RunConfig, ValidationConfig
from fiber.training.config.tasks import ReasoningTask, TasksConfig


def recipe() -> RunConfig:
    """The whole run."""
    base = small_vqa.recipe()
    return dataclasses.replace(
        base,
        model=small_vqa.model_for("nlvr2"),
        tasks=TasksConfig(reasoning=ReasoningTask(share=1)),
        data=dataclasses.replace(base.data, batch_size=32),
        train=dataclasses.replace(base.train, steps=400),
        validation=ValidationConfig(task="nlvr2", pictures=200),
    )
