"""`Task`: what the package knows about a task before it trains, evaluates or runs it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fiber.tasks.fields import TaskConfig
from fiber.tasks.lazy import load

if TYPE_CHECKING:
    # Imports NumPy, which the table of commands does not need.
    from fiber.data.loader_config import BatchType


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A metric of `fiber.evaluate`."""

    #: Heads of which a model needs one, best first.
    heads: tuple[str, ...]
    #: Function of `fiber.data.sources` that reads the records, of all groups.
    source: str
    #: Metrics whose sum selects the best checkpoint of a run.
    chosen_by: tuple[str, ...]
    #: Function of (context, records) that computes metrics and predictions, as "module:name".
    run: str
    #: True if the texts of records are inputs of the model.
    reads_texts: bool = True
    #: What to do with an annotation file that has no held-out split.
    split_hint: str = "Add a field 'split' to every line"

    def __post_init__(self) -> None:
        for name in ("heads", "chosen_by"):
            if isinstance(value := getattr(self, name), str):
                raise TypeError(f"{name}: expected a tuple of names, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: its options, and where its parts are found.

    Modules that need torch are named as "module:name" and imported when they are used, so that
    recipes are listed and checked quickly.
    """

    #: Name in `TasksConfig`, in records and in commands.
    name: str
    #: Class of the options.
    config: type[TaskConfig]
    #: Layout of the batches that the loader makes; see `fiber.data.DataLoader`.
    layout: BatchType
    #: Subclass of `fiber.training.task_training.TaskTraining`, as "module:name".
    training: str
    #: Evaluations by name.
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    #: Function that adds the commands that ask a model for this task to the table of commands, as
    #: "module:add_command". It takes what `ArgumentParser.add_subparsers` returns; every parser
    #: sets `run`, a function from the parsed options to an exit code.
    command: str | None = None
    #: Methods of `fiber.Model` that another package adds, by name: functions of (model,
    #: *arguments), as "module:function". Of a model of several stages, the one with the task's head
    #: is asked. Those of this package's tasks are written in `fiber.inference`.
    methods: Mapping[str, str] = field(default_factory=dict)
    #: Number that seeds the order of the data, so that tasks that share records visit them in other
    #: orders. It is part of every run: it never changes. Default: a checksum of the name.
    stream: int = -1
    #: Images of a sample.
    images: int = 1

    def __post_init__(self) -> None:
        if self.stream < 0:
            object.__setattr__(self, "stream", zlib.crc32(self.name.encode()))

    def trained(self, options: TaskConfig) -> Any:
        """Create the `TaskTraining` of this task with its options."""
        return load(self.training)(self, options)
