"""Tasks: what a model is trained, evaluated and asked for. Each has a folder.

`TASKS` is the only list of them. A folder holds

- `fields.py`: options of a run and their checks, and the entry `TASK`; imports no torch;
- `train.py`: records, batches, losses in branches, priors and cost;
- `evaluate.py`: metrics on a split;
- `command.py`: commands that ask a model, if the task has any.

Another package adds a task by an entry point of the group "fiber.tasks", whose value has the form
of those of `TASKS`; `tests/examples/outside` is one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, get_args

from fiber.config_io import nearest
from fiber.messages import caller_level, printable, shown
from fiber.tasks.lazy import load, package_of

if TYPE_CHECKING:
    from fiber.tasks.task import Evaluation, Task

#: Entries by name, in the order in which a run lists its tasks.
TASKS = {
    "image_text": "fiber.tasks.image_text.fields:TASK",
    "question": "fiber.tasks.question.fields:TASK",
    "reasoning": "fiber.tasks.reasoning.fields:TASK",
    "entailment": "fiber.tasks.entailment.fields:TASK",
    "ranking": "fiber.tasks.ranking.fields:TASK",
    "caption": "fiber.tasks.caption.fields:TASK",
    "grounding": "fiber.tasks.grounding.fields:TASK",
    "segmentation": "fiber.tasks.segmentation.fields:TASK",
}
#: Group of entry points of other packages.
GROUP = "fiber.tasks"
#: Maximum number of characters of an error in a message.
_MAX_ERROR = 200
#: Names of `TasksConfig` that are no tasks.
RESERVED = ("active", "of_step", "rotation", "together")


@dataclass(frozen=True, kw_only=True)
class InstalledTask:
    """Entry point of another package, loaded."""

    name: str
    #: Module and attribute, "fiber_counting.task.fields:TASK".
    target: str
    #: Name and version of the package.
    package: str
    #: None if the entry point cannot be used.
    task: Task | None = None
    #: Why it cannot be used, in one line, or "".
    error: str = ""

    def __str__(self) -> str:
        return f"{shown(self.name)} of {self.package} ({self.target})"


@cache
def all_tasks() -> dict[str, Task]:
    """Return the tasks of this package and of others by name.

    Warns once of each entry of another package that cannot be used.
    """
    tasks = _own_tasks()
    for each in installed_tasks():
        if each.task is None:
            text = f"task {each} is skipped: {each.error}"
            warnings.warn(text, RuntimeWarning, stacklevel=caller_level())
        else:
            tasks[each.name] = each.task
    return tasks


def _own_tasks() -> dict[str, Task]:
    return {name: load(path) for name, path in TASKS.items()}


@cache
def installed_tasks() -> tuple[InstalledTask, ...]:
    """Import the tasks of other packages, once, those that cannot be used among them."""
    found: list[InstalledTask] = []
    taken = _own_tasks()
    for entry in sorted(entry_points(group=GROUP), key=lambda each: (each.name, each.value)):
        description: dict[str, Any] = {
            "name": entry.name,
            "target": printable(entry.value, _MAX_ERROR),
            "package": package_of(entry),
        }
        try:
            task = _checked(entry.name, load(entry.value), taken)
        # Code of another package may fail in any way, and must not end a command.
        except (Exception, SystemExit) as error:
            text = printable(" ".join(f"{type(error).__name__}: {error}".split()), _MAX_ERROR)
            found.append(InstalledTask(**description, error=text))
        else:
            found.append(InstalledTask(**description, task=task))
            taken[task.name] = task
    return tuple(found)


def _checked(name: str, task: Any, taken: Mapping[str, Task]) -> Task:
    """Check that an entry point is a new task, whose name and options can be fields of a config."""
    from fiber.tasks.fields import TaskConfig
    from fiber.tasks.task import Task

    if not isinstance(task, Task):
        raise TypeError(f"expected a fiber.tasks.task.Task, got {shown(task)}")
    if name in taken:
        raise ValueError(f"the task {shown(name)} exists already")
    if task.name != name:
        raise ValueError(f"the name of the task is {shown(task.name)}; expected {shown(name)}")
    if not name.isidentifier() or iskeyword(name) or name.startswith("_") or name in RESERVED:
        raise ValueError(
            f"expected a name that can be a field beside {', '.join(RESERVED)}, got {shown(name)}"
        )
    if not (isinstance(task.config, type) and issubclass(task.config, TaskConfig)):
        raise TypeError(f"config: expected a subclass of TaskConfig, got {shown(task.config)}")
    # NumPy is imported only where a package adds tasks.
    from fiber.data.loader_config import BatchType

    if task.layout not in (layouts := get_args(BatchType)):
        known = nearest(str(task.layout), layouts)
        raise ValueError(f"the layout {shown(task.layout)} does not exist; {known}")
    # Every run has the options of all tasks, most of them inactive.
    options = task.config()
    options.check(f"tasks.{name}")
    for loss in options.losses:
        if not hasattr(options, loss):
            kind = type(options).__name__
            raise TypeError(f"config: expected a field of {kind} for the loss {shown(loss)}")
    if options.share:
        raise ValueError(f"config: expected a share of 0 by default, got {shown(options.share)}")
    evaluations = {each for other in taken.values() for each in other.evaluations}
    if both := sorted(evaluations.intersection(task.evaluations)):
        raise ValueError(f"the evaluation {shown(both[0])} exists already")
    return task


def find_task(name: str) -> Task:
    """Look up a task by name.

    Raises:
        ValueError: if there is no such task; the message suggests similar names.
    """
    if name not in all_tasks():
        raise ValueError(f"task {shown(name)} does not exist; {nearest(name, all_tasks())}")
    return all_tasks()[name]


@cache
def methods_of_others() -> dict[str, Task]:
    """Return the tasks of other packages by the names of the methods that they add to models."""
    found = [each.task for each in installed_tasks() if each.task is not None]
    return {name: task for task in found for name in task.methods}


@cache
def all_evaluations() -> dict[str, Evaluation]:
    """Return what `fiber.evaluate` measures, by name."""
    return {
        name: evaluation
        for task in all_tasks().values()
        for name, evaluation in task.evaluations.items()
    }


def task_of_evaluation(name: str) -> Task:
    """Look up the task that an evaluation belongs to; raises ValueError as `find_evaluation`."""
    evaluation = find_evaluation(name)
    return next(task for task in all_tasks().values() if task.evaluations.get(name) is evaluation)


def find_evaluation(name: str) -> Evaluation:
    """Look up an evaluation by name.

    Raises:
        ValueError: if there is no such evaluation; the message suggests similar names.
    """
    if name not in all_evaluations():
        raise ValueError(f"task {shown(name)} does not exist; {nearest(name, all_evaluations())}")
    return all_evaluations()[name]
