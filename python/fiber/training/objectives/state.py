"""State of a run's tasks: what they compute of the data, and what a checkpoint saves.

A resumed run matches an uninterrupted one exactly. Saved tensors are identical on all ranks, except
for queued images, of which each rank holds a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fiber.training.config.run import RunConfig
from fiber.training.task_training import TaskTraining, trainings_of
from fiber.training.training_data import TrainingData


class ObjectiveState:
    """The tasks of a run by name, with their state."""

    def __init__(self, trainings: Mapping[str, TaskTraining] | None = None) -> None:
        self.trainings = dict(trainings or {})

    @classmethod
    def of(cls, config: RunConfig, device: torch.device) -> ObjectiveState:
        """Create the state of a new run on a device, without what is computed of the data."""
        state = cls(trainings_of(config.tasks.active()))
        state.start(config, device)
        return state

    @classmethod
    def prepared(cls, config: RunConfig, data: TrainingData) -> ObjectiveState:
        """Compute what the tasks of a new run need of the data; `start` allocates the rest.

        Raises:
            ValueError: if a task cannot be trained on the data.
        """
        state = cls(trainings_of(config.tasks.active()))
        for training in state.trainings.values():
            training.prepare(config, data)
        return state

    def start(self, config: RunConfig, device: torch.device) -> None:
        """See `TaskTraining.start`."""
        for training in self.trainings.values():
            training.start(config, device)

    def begin_step(self, step: int, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """See `TaskTraining.begin_step`; `weights` is only called if needed."""
        for training in self.trainings.values():
            training.begin_step(step, weights)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors to save in a checkpoint, by part."""
        parts: dict[str, dict[str, Tensor]] = {}
        for training in self.trainings.values():
            parts |= training.state_dict()
        return parts

    def load_state_dict(self, state: Mapping[str, dict[str, Tensor]]) -> None:
        """Restore a state returned by `state_dict`."""
        for training in self.trainings.values():
            training.load_state_dict(state)
