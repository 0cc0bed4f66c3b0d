"""Options of the task "entailment"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fiber.tasks.fields import TaskConfig
from fiber.tasks.task import Evaluation, Task


@dataclass(frozen=True, kw_only=True)
class EntailmentTask(TaskConfig):
    """Hypotheses that an image entails or contradicts (SNLI-VE); for METER."""

    losses: ClassVar[tuple[str, ...]] = ("snli",)
    sources: tuple[str, ...] = ("entailment",)
    snli: float = 1.0

    def heads(self) -> tuple[str, ...]:
        return ("snli",)


TASK = Task(
    name="entailment",
    config=EntailmentTask,
    layout="question",
    stream=3,
    training="fiber.tasks.entailment.train:EntailmentTraining",
    command="fiber.tasks.entailment.command:add_command",
    evaluations={
        "snli": Evaluation(
            heads=("snli",),
            source="entailment",
            chosen_by=("accuracy",),
            run="fiber.tasks.entailment.evaluate:entailment",
        ),
    },
)
