"""The forward pass of a training step as one module: a batch of a task to its losses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from fiber.losses.grounding import grounding_losses
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText
from fiber.training.config.tasks import TasksConfig
from fiber.training.objective_state import ObjectiveState
from fiber.training.objectives import (
    Draw,
    caption_losses,
    image_text_branches,
    nlvr2_losses,
    self_critical_losses,
    vqa_losses,
)
from fiber.training.split_backward import SplitGraph


class TrainStep(nn.Module):
    """Model and objectives: the module to wrap with torch.compile, FSDP2 or DDP.

    `forward` is an ordinary forward pass that leaves one graph:

        losses = step(task, batch, draw)
        sum(weights[name] * loss for name, loss in losses.items()).backward()

    `branches` computes the same losses one branch at a time, for callers that run each backward
    before the next one is computed (see `fiber.training.split_backward`).

    The parameters are those of the model alone; `state` is saved by the trainer.
    """

    def __init__(
        self,
        model: FiberImageText | FiberDetector,
        tasks: TasksConfig,
        state: ObjectiveState | None = None,
    ) -> None:
        """Args:
        model: the detector for the task "grounding", else the image-text model.
        tasks: settings of all tasks.
        state: of the objectives that keep one, such as the ITC queue; None for the others.
        """
        super().__init__()
        self.model = model
        self.tasks = tasks
        self.state = state if state is not None else ObjectiveState()

    def forward(self, task: str, batch: Any, draw: Draw) -> dict[str, Tensor]:
        """Compute the losses of one task.

        Args:
            task: a field of `TasksConfig`.
            batch: of the type that the task reads.
            draw: key of the random numbers of this micro-batch.

        Returns:
            Unweighted scalars by name. Their mean over the ranks is the loss of the whole batch.
        """
        return {
            name: loss
            for losses in self.branches(task, batch, draw)
            for name, loss in losses.items()
        }

    def branches(
        self, task: str, batch: Any, draw: Draw, split: SplitGraph | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Compute the losses of one task branch by branch.

        Iterate to the end: the ITC queue takes in the batch after the last branch.

        Args:
            task: a field of `TasksConfig`.
            batch: of the type that the task reads.
            draw: key of the random numbers of this micro-batch.
            split: cuts what branches share from the graph. The caller then runs each branch
                backward before it asks for the next one, and `split.backward()` at the end.

        Yields:
            Unweighted scalars by name, different names in each branch.
        """
        if isinstance(self.model, FiberDetector):
            output = self.model(batch.images, batch.token_ids, batch.text_mask, batch.image_sizes)
            yield grounding_losses(output, batch, self.model.config)
        elif task == "image_text":
            yield from image_text_branches(
                self.model, batch, self.tasks.image_text, draw, self.state.queue, split
            )
        elif task == "question":
            yield vqa_losses(self.model, batch)
        elif task == "reasoning":
            yield nlvr2_losses(self.model, batch)
        elif self.state.rewards is not None:
            yield self_critical_losses(
                self.model, batch, self.tasks.caption, draw, self.state.rewards
            )
        else:
            yield caption_losses(self.model, batch, self.tasks.caption, self.state.reference)
