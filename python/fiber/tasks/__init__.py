"""Tasks: what a model is trained, evaluated and asked for. Each has a folder.

`TASKS` is the only list of them. A folder holds

- `fields.py`: options of a run and their checks, and the entry `TASK`; imports no torch;
- `train.py`: records, batches, losses in branches, priors and cost;
- `evaluate.py`: metrics on a split;
- `command.py`: commands that ask a model, if the task has any.

Another package adds a task by an entry point of the group "fiber.tasks", whose value has the form
of those of `TASKS`.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from fiber.config_io import nearest
from fiber.messages import printable, shown
from fiber.tasks.lazy import load

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
}
#: Group of entry points of other packages.
GROUP = "fiber.tasks"
#: Maximum number of characters of an error in a message.
_MAX_ERROR = 300


@cache
def all_tasks() -> dict[str, Task]:
    """Return the tasks of this package and of others by name.

    Warns once of each entry of another package that cannot be used.
    """
    tasks = {name: load(path) for name, path in TASKS.items()}
    for entry in entry_points(group=GROUP):
        task, problem = _of_entry(entry)
        if problem:
            warnings.warn(problem, RuntimeWarning, stacklevel=2)
        else:
            tasks[entry.name] = task
    return tasks


def _of_entry(entry: EntryPoint) -> tuple[Any, str]:
    """Load the task of an entry point; return None and what is wrong with it if that fails."""
    from fiber.tasks.task import Task

    where = f"entry point {shown(entry.name)} = {shown(entry.value)} of the group {GROUP!r}"
    if entry.name in TASKS:
        return None, f"{where}: the task {entry.name!r} is one of fiber's own; use another name"
    try:
        task = load(entry.value)
    # Code of another package may fail in any way.
    except Exception as error:
        return None, f"{where}: {type(error).__name__}: {printable(str(error), _MAX_ERROR)}"
    if not isinstance(task, Task):
        return None, f"{where}: expected a fiber.tasks.task.Task, got {type(task).__name__}"
    if task.name != entry.name or not task.name.isidentifier():
        return None, f"{where}: expected the name of the task, {task.name!r}, an identifier"
    return task, ""


def entry_problems() -> dict[str, str]:
    """Return the entry points of other packages by name, with what is wrong with each, or ""."""
    return {entry.name: _of_entry(entry)[1] for entry in entry_points(group=GROUP)}


def find_task(name: str) -> Task:
    """Look up a task by name.

    Raises:
        ValueError: if there is no such task; the message suggests similar names.
    """
    if name not in all_tasks():
        raise ValueError(f"task {shown(name)} does not exist; {nearest(name, all_tasks())}")
    return all_tasks()[name]


@cache
def all_evaluations() -> dict[str, Evaluation]:
    """Return what `fiber.evaluate` measures, by name."""
    return {
        name: evaluation
        for task in all_tasks().values()
        for name, evaluation in task.evaluations.items()
    }


def find_evaluation(name: str) -> Evaluation:
    """Look up an evaluation by name.

    Raises:
        ValueError: if there is no such evaluation; the message suggests similar names.
    """
    if name not in all_evaluations():
        raise ValueError(f"task {shown(name)} does not exist; {nearest(name, all_evaluations())}")
    return all_evaluations()[name]
