"""Options of the task "reasoning"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fiber.tasks.fields import TaskConfig
from fiber.tasks.task import Evaluation, Task


@dataclass(frozen=True, kw_only=True)
class ReasoningTask(TaskConfig):
    """Statements about two images (NLVR2)."""

    losses: ClassVar[tuple[str, ...]] = ("nlvr2",)
    sources: tuple[str, ...] = ("reasoning",)
    nlvr2: float = 1.0

    def heads(self) -> tuple[str, ...]:
        return ("nlvr2",)


TASK = Task(
    name="reasoning",
    config=ReasoningTask,
    layout="reasoning",
    stream=2,
    images=2,
    training="fiber.tasks.reasoning.train:ReasoningTraining",
    command="fiber.tasks.reasoning.command:add_command",
    evaluations={
        "nlvr2": Evaluation(
            heads=("nlvr2",),
            source="reasoning",
            chosen_by=("accuracy",),
            run="fiber.tasks.reasoning.evaluate:nlvr2",
        ),
    },
)
