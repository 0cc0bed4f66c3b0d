"""Tasks of a training run; see `fiber.tasks`.

This module does not import torch, so that recipes can be listed and checked quickly.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fiber.config_io import IS_STORED, from_dict, nearest, require
from fiber.messages import shown
from fiber.tasks import GROUP, TASKS, all_tasks, installed_tasks
from fiber.tasks.caption.fields import CaptionTask
from fiber.tasks.entailment.fields import EntailmentTask
from fiber.tasks.fields import TaskConfig, first_part, split_source, task_of
from fiber.tasks.grounding.fields import GroundingTask
from fiber.tasks.image_text.fields import ImageTextTask
from fiber.tasks.question.fields import QuestionTask
from fiber.tasks.ranking.fields import RankingTask
from fiber.tasks.reasoning.fields import ReasoningTask
from fiber.tasks.segmentation.fields import SegmentationTask

__all__ = [
    "CaptionTask",
    "EntailmentTask",
    "GroundingTask",
    "ImageTextTask",
    "QuestionTask",
    "RankingTask",
    "ReasoningTask",
    "SegmentationTask",
    "TaskConfig",
    "TasksConfig",
    "first_part",
    "read_tasks",
    "split_source",
    "task_of",
]


@dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """All tasks. Each step trains one task with a share above 0, in a fixed rotation."""

    #: Train all tasks with a share above 0 in each step, on the sum of their losses.
    together: bool = False

    image_text: ImageTextTask = field(default_factory=ImageTextTask)
    question: QuestionTask = field(default_factory=QuestionTask)
    reasoning: ReasoningTask = field(default_factory=ReasoningTask)
    entailment: EntailmentTask = field(default_factory=EntailmentTask)
    ranking: RankingTask = field(default_factory=RankingTask)
    caption: CaptionTask = field(default_factory=CaptionTask)
    grounding: GroundingTask = field(default_factory=GroundingTask)
    segmentation: SegmentationTask = field(
        default_factory=SegmentationTask, metadata={IS_STORED: lambda options: options.share > 0}
    )

    def __post_init__(self) -> None:
        for name, task in vars(self).items():
            if isinstance(task, TaskConfig):
                task.check(f"tasks.{name}")
        require(bool(self.active()), "tasks: every share is 0; at least one must be above 0")
        for name, task in self.active().items():
            require(
                not self.together or task.share == 1,
                f"tasks.{name}.share must be 1 with tasks.together, got {task.share}",
            )

    def active(self) -> dict[str, TaskConfig]:
        """Return the tasks with a share above 0, by name."""
        tasks = {name: task for name, task in vars(self).items() if isinstance(task, TaskConfig)}
        return {name: task for name, task in tasks.items() if task.share > 0}

    def of_step(self, step: int) -> tuple[str, ...]:
        """Return the tasks that a step trains, counted from 0."""
        rotation = self.rotation()
        return tuple(self.active()) if self.together else (rotation[step % len(rotation)],)

    def rotation(self) -> tuple[str, ...]:
        """Return the task of each step in one rotation, with the steps of a task evenly spaced.

        >>> TasksConfig(
        ...     image_text=ImageTextTask(share=2), question=QuestionTask(share=1)
        ... ).rotation()
        ('image_text', 'question', 'image_text')
        """
        shares = {name: task.share for name, task in self.active().items()}
        total = sum(shares.values())
        credit = dict.fromkeys(shares, 0)
        order = []
        for _ in range(total):
            for name in credit:
                credit[name] += shares[name]
            chosen = max(credit, key=lambda name: credit[name])
            credit[chosen] -= total
            order.append(chosen)
        return tuple(order)


if not TYPE_CHECKING:
    #: Tasks of other packages are fields, too, which are written only if the run trains them: other
    #: runs are read without the package.
    _OTHERS = [(name, task) for name, task in all_tasks().items() if name not in TASKS]
    if _OTHERS:
        TasksConfig = dataclasses.make_dataclass(
            "TasksConfig",
            [
                (
                    name,
                    task.config,
                    field(
                        default_factory=task.config,
                        metadata={IS_STORED: lambda options: options.share > 0},
                    ),
                )
                for name, task in _OTHERS
            ],
            bases=(TasksConfig,),
            frozen=True,
            kw_only=True,
        )
        # Pickles name it.
        TasksConfig.__module__ = __name__


def read_tasks(value: Any, where: str = "tasks") -> TasksConfig:
    """Build the tasks of a run from a dict of their options, or return a `TasksConfig`.

    Raises:
        ValueError: if a task is not installed or an option is invalid; the message names it.
    """
    if isinstance(value, TasksConfig):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected options of tasks, got {shown(value)}")
    known = [each.name for each in dataclasses.fields(TasksConfig)]
    for name in value:
        if isinstance(name, str) and name not in known:
            skipped = "".join(f"; skipped: {each}" for each in installed_tasks() if each.error)
            raise ValueError(
                f"unknown field {shown(f'{where}.{name}')}: {nearest(name, known)}; no package with"
                f" this task is installed (entry point of the group {GROUP!r}){skipped}"
            )
    return from_dict(TasksConfig, value, where=f"{where}.")
