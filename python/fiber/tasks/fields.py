"""Options common to all tasks of a training run.

This module does not import torch, so that recipes can be listed and checked quickly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from fiber.config_io import IS_STORED, nearest, require
from fiber.data.datasets.registry import SOURCES
from fiber.messages import shown
from fiber.tasks.transform import TransformConfig

#: Suffix of a task's name in `first_part`.
_FIRST = " first"


def first_part(task: str) -> str:
    """Name the records of the first steps of a task, see `TaskConfig.first_sources`."""
    return task + _FIRST


def task_of(name: str) -> str:
    """Return the task that a name of records belongs to: itself, or one with a `first_part`."""
    return name.removesuffix(_FIRST)


def split_source(source: str) -> tuple[str, str]:
    """Split an entry of `TaskConfig.sources` into the source and the group, "" for all records."""
    name, _, group = source.partition(":")
    return name, group


def _is_given(value: TransformConfig | None) -> bool:
    return value is not None


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Options common to all tasks. A subclass has a weight, a float, for each loss of its task."""

    #: Names of the losses, which are fields, too.
    losses: ClassVar[tuple[str, ...]] = ()

    #: Number of steps of this task in each rotation of tasks; 0 disables the task.
    share: int = 0
    #: Samples of a step, over all ranks and accumulated micro-batches; 0 means `data.batch_size`.
    batch_size: int = 0
    #: Preprocessing of the images of this task; None means `data.transform`.
    transform: TransformConfig | None = field(default=None, metadata={IS_STORED: _is_given})
    #: Keys of `registry.SOURCES` to concatenate; a repeated one counts twice. "referring:relation"
    #: takes the records of a source whose `Record.group` is "relation".
    sources: tuple[str, ...] = ()
    #: Sources of the first `first_steps` steps of the task, in place of `sources`: a curriculum. In
    #: a run with no more steps of the task, `sources` are not read.
    first_sources: tuple[str, ...] = ()
    first_steps: int = 0

    def weights(self) -> dict[str, float]:
        """Return the weight of each loss by name."""
        return {name: getattr(self, name) for name in self.losses}

    def heads(self) -> tuple[str, ...]:
        """Return the heads of the model that the task trains or needs."""
        return ()

    @property
    def reads_masks(self) -> bool:
        """True if readers with an option `masks` should set it."""
        return False

    def check(self, where: str) -> None:
        """Check the options; `where` is the task's dotted name, as in "tasks.question".

        Raises:
            ValueError: if an option is out of range; the message gives its dotted name.
        """
        for name in ("share", "batch_size"):
            value = getattr(self, name)
            require(value >= 0, f"{where}.{name} must be 0 or more, got {value}")
        require(
            bool(self.sources) or not self.share,
            f"{where}.sources: expected at least one source, got none",
        )
        known = [name for name, source in SOURCES.items() if source.in_tasks]
        for name in ("sources", "first_sources"):
            for source, _ in map(split_source, getattr(self, name)):
                require(
                    source in known,
                    f"{where}.{name}: unknown source {shown(source)}; {nearest(source, known)}",
                )
        require(
            self.first_steps > 0 if self.first_sources else self.first_steps == 0,
            f"{where}.first_steps must be"
            f" {'1 or more with' if self.first_sources else '0 without'} first_sources, got"
            f" {self.first_steps}",
        )

    def check_run(self, where: str, run: Any) -> None:
        """Check the options against the rest of the `RunConfig` in which the task is active.

        Raises:
            ValueError: if they do not fit; the message gives the dotted names of both.
        """


def check_pairs(task: str, losses: str, run: Any) -> None:
    """Check that a task's micro-batch has a negative for each pair, which `losses` need."""
    require(
        run.micro_batch_size(task) > 1,
        f"{run.batch_size_field(task)} in {run.train.accumulation} micro-batches"
        " (train.accumulation) leaves one pair per micro-batch; tasks."
        f"{losses} need 2 or more, since negatives come from the other pairs",
    )
