"""Options of the task "ranking"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fiber.config_io import require
from fiber.tasks.fields import TaskConfig, check_pairs
from fiber.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class RankingTask(TaskConfig):
    """Retrieval by a ranking head; for METER.

    Every image ranks its caption among captions of other images. ITM, with random images of the
    batch as negatives, is trained in shared forward passes unless its weight is 0. In the published
    fine-tuning, `optim.frozen` has "itm_head", so that ITM only trains the layers below.
    """

    losses: ClassVar[tuple[str, ...]] = ("itm", "rank")
    sources: tuple[str, ...] = ("captions",)
    #: Number of false captions of each image.
    false_texts: int = 15
    rank: float = 1.0
    itm: float = 1.0

    def heads(self) -> tuple[str, ...]:
        return (*(["itm"] if self.itm > 0 else []), "rank")

    def check(self, where: str) -> None:
        super().check(where)
        require(
            not self.first_sources,
            f"{where}.first_sources: expected none, since false captions are drawn from all"
            f" captions, got {', '.join(self.first_sources)}",
        )
        require(
            self.false_texts >= 1, f"{where}.false_texts must be 1 or more, got {self.false_texts}"
        )

    def check_run(self, where: str, run: Any) -> None:
        if self.itm:
            check_pairs(TASK.name, "ranking.itm", run)


TASK = Task(
    name="ranking",
    config=RankingTask,
    layout="image_text",
    stream=6,
    training="fiber.tasks.ranking.train:RankingTraining",
)
