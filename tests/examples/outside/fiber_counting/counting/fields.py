"""Options of the task "counting", and its entry, which pyproject.toml names.

No torch is imported, so that `fiber --help` and recipes are fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fiber.tasks.fields import TaskConfig
from fiber.tasks.task import Evaluation, Task


@dataclass(frozen=True, kw_only=True)
class CountingTask(TaskConfig):
    """Number of objects in an image: the boxes of its record."""

    losses: ClassVar[tuple[str, ...]] = ("count",)
    sources: tuple[str, ...] = ("detection",)
    #: Weight of the loss.
    count: float = 1.0

    def heads(self) -> tuple[str, ...]:
        """Return the heads of the model that the task trains."""
        return ("count",)


TASK = Task(
    name="counting",
    config=CountingTask,
    # One of the layouts that the loader makes; it has the number of boxes of each image.
    layout="grounding",
    training="fiber_counting.counting.train:CountingTraining",
    evaluations={
        "counting": Evaluation(
            heads=("count",),
            source="detection",
            chosen_by=("accuracy",),
            run="fiber_counting.counting.evaluate:counting",
            reads_texts=False,
        ),
    },
    # `model.count(images)` and `fiber count MODEL IMAGE...`.
    methods={"count": "fiber_counting.counting.ask:count"},
    command="fiber_counting.counting.command:add_command",
)
