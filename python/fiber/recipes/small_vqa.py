"""Fine-tuning a small model on a CPU: answers to questions about pictures.

Command: fiber train small_vqa --data runs/scenes --init runs/demo/coarse
Data: a folder of `fiber data`, or questions in any other form of `fiber.data.opening` (a .jsonl of
    your own among them).
Hardware: two CPU cores, minutes.
Expected: docs/results.md, for scenes and stamps.
"""

import dataclasses

from fiber.config import FiberConfig, preset
from fiber.training.config.run import (
    DataConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    ValidationConfig,
)
from fiber.training.config.tasks import QuestionTask, TasksConfig


def recipe() -> RunConfig:
    """The whole run."""
    return RunConfig(
        model=model_for("vqa"),
        tasks=TasksConfig(question=QuestionTask(share=1)),
        data=DataConfig(batch_size=64),
        # A small model was trained for minutes only: its towers still need a high rate.
        optim=OptimConfig(
            lr=3e-4, head_lr_multiplier=1.0, cross_modal_lr_multiplier=1.0, clip_norm=1.0
        ),
        train=TrainConfig(steps=400, log_every=20, checkpoint_every=100),
        validation=ValidationConfig(task="vqa", pictures=200),
    )


def model_for(head: str) -> FiberConfig:
    """The small model with one head."""
    small = preset("small")
    image_text = dataclasses.replace(small.image_text, heads=(head,))
    return dataclasses.replace(small, image_text=image_text)
