"""Recipes of the package, by their place: `fiber train fiber_counting.recipes:scenes_counting`."""

from __future__ import annotations

from fiber_counting.counting.fields import CountingTask
from fiber_counting.toy.config import ToyConfig

from fiber.tasks.transform import TransformConfig
from fiber.training.config.run import (
    DataConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    ValidationConfig,
)
from fiber.training.config.tasks import TasksConfig


def scenes_counting() -> RunConfig:
    r"""Toy model that counts objects in generated scenes, trained in a minute.

    Command: fiber data scenes --output runs/scenes
             fiber train fiber_counting.recipes:scenes_counting --data runs/scenes \
                 --output runs/count
    Data: rendered scenes; the boxes of an image are its objects.
    Hardware: a CPU core.
    Expected: an accuracy above `chance_accuracy`, as `fiber eval runs/count counting` prints.
    """
    return RunConfig(
        model=ToyConfig(),
        tasks=TasksConfig(counting=CountingTask(share=1)),
        # A crop would lose objects.
        data=DataConfig(batch_size=32, transform=TransformConfig(kind="squash")),
        optim=OptimConfig(lr=3e-3, head_lr_multiplier=1.0, clip_norm=1.0),
        train=TrainConfig(steps=1500, checkpoint_every=300),
        validation=ValidationConfig(task="counting"),
    )
