"""`TrainStep`: compute the named losses of a task's batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from fiber.losses.itc import clamp_temperature
from fiber.messages import shown, shown_names
from fiber.models.registry import Network
from fiber.training.config.tasks import TasksConfig
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.forward_passes import ONE_PASS, ForwardPasses
from fiber.training.objectives.split_backward import SplitGraph
from fiber.training.objectives.state import ObjectiveState
from fiber.training.task_training import trainings_of


class TrainStep(nn.Module):
    """Model and objectives: the module to wrap with torch.compile, FSDP2 or DDP.

    `forward` is an ordinary forward pass with one graph:

        losses = step(task, batch, draw)
        sum(weights[name] * loss for name, loss in losses.items()).backward()

    `branches` computes the same losses one branch at a time, for callers that run each backward
    before the next branch is computed (see `fiber.training.objectives.split_backward`).

    The parameters of this module are those of the model; the trainer saves `state`.
    """

    def __init__(
        self,
        model: Network,
        tasks: TasksConfig,
        state: ObjectiveState | None = None,
    ) -> None:
        """Wrap the model of a run.

        `state` has the tasks' own state, such as a queue, and is required by those that have any.

        Raises:
            MissingHeadError: if the model lacks what a task needs.
        """
        super().__init__()
        self.model = model
        self.tasks = tasks
        self.state = state or ObjectiveState(trainings_of(tasks.active()))
        for training in self.state.trainings.values():
            training.check_model(model)

    def forward(self, task: str, batch: Any, draw: Draw) -> dict[str, Tensor]:
        """Compute the losses of one task; see `branches` for the arguments.

        Returns:
            Unweighted scalars by name. Their mean over the ranks is the loss of the whole batch.
        """
        return {
            name: loss
            for losses in self.branches(task, batch, draw)
            for name, loss in losses.items()
        }

    def branches(
        self,
        task: str,
        batch: Any,
        draw: Draw,
        split: SplitGraph | None = None,
        passes: ForwardPasses = ONE_PASS,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the losses of one task, one branch at a time.

        Exhaust the iterator: the ITC queue stores the batch after the last branch.

        Args:
            task: name of a `TasksConfig` field.
            batch: batch of the task's type.
            draw: key of the random numbers.
            split: detaches tensors shared by branches from the graph. The caller then runs each
                branch's backward before requesting the next branch, and calls `split.backward()`
                at the end.
            passes: number of parts in which to compute the losses of separate samples.

        Yields:
            Unweighted scalars by name. With one pass, no name occurs in two branches; with several,
            the scalars of a name add up to the loss.
        """
        training = self.state.trainings[task]
        known = training.options.weights()
        for losses in training.branches(self.model, batch, draw, split, passes):
            if unknown := [name for name in losses if name not in known]:
                raise ValueError(
                    f"task {task!r} computes the loss {shown(unknown[0])}, for which its"
                    f" {type(training.options).__name__} has no weight; expected"
                    f" {shown_names(known)}"
                )
            yield losses

    def pass_through(self, tensor: Tensor) -> Tensor:
        """Return the tensor; under FSDP2, gradients can be reduced by its backward pass."""
        return tensor * 1

    def clamp_parameters(self) -> None:
        """Clamp the ITC temperature to its range; call this after each optimizer step."""
        temperature = getattr(self.model, "temperature", None)
        if temperature is not None:
            clamp_temperature(temperature)

    def num_branches(self, task: str, passes: ForwardPasses = ONE_PASS) -> int:
        """Return the number of branches that `branches` yields for a task."""
        return self.state.trainings[task].num_branches(passes)
