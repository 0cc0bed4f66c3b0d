"""Options of the task "question"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fiber.tasks.fields import TaskConfig
from fiber.tasks.task import Evaluation, Task


@dataclass(frozen=True, kw_only=True)
class QuestionTask(TaskConfig):
    """Questions about images (VQA)."""

    losses: ClassVar[tuple[str, ...]] = ("vqa",)
    sources: tuple[str, ...] = ("questions",)
    vqa: float = 1.0

    def heads(self) -> tuple[str, ...]:
        return ("vqa",)


TASK = Task(
    name="question",
    config=QuestionTask,
    layout="question",
    stream=1,
    training="fiber.tasks.question.train:QuestionTraining",
    command="fiber.tasks.question.command:add_command",
    evaluations={
        "vqa": Evaluation(
            heads=("vqa",),
            source="questions",
            chosen_by=("accuracy",),
            run="fiber.tasks.question.evaluate:vqa",
        ),
    },
)
