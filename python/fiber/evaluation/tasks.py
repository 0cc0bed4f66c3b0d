"""Run an evaluation of `fiber.tasks` on records."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fiber.atomic_io import made_folder, write_text
from fiber.data import sources
from fiber.data.datasets.registry import SOURCES
from fiber.data.datasets.resolve import (
    RECORD_SET,
    Data,
    check_records,
    check_supported,
    existing_data,
    is_readable,
    open_source,
)
from fiber.data.formats.layout import Source
from fiber.data.record import Record, RecordSet
from fiber.data.skip_report import skip_lines
from fiber.evaluation.context import EvalContext, EvalResult
from fiber.tasks import find_evaluation, task_of_evaluation
from fiber.tasks.lazy import load


def reader_of(task: str) -> Callable[..., RecordSet]:
    """Return the function of `fiber.data.sources` that reads the records of a task.

    Raises:
        ValueError: if there is no such task.
    """
    return getattr(sources, find_evaluation(task).source)


def needed_head(task: str, heads: Sequence[str]) -> str:
    """Return the head that a task uses: the best one of `heads`, or the best one that it lacks."""
    wanted = find_evaluation(task).heads
    return next((head for head in wanted if head in heads), wanted[0])


def run_task(
    context: EvalContext,
    task: str,
    records: RecordSet,
    output: str | os.PathLike[str] | None = None,
) -> dict[str, float]:
    """Evaluate a task on records, write predictions to `output` if given, and return metrics.

    Of several processes, only the first one writes.
    """
    context = dataclasses.replace(context, task=task_of_evaluation(task).name)
    if context.permute_images:
        records = PermutedImages(records)
    fusion = nullcontext() if context.fusion else fusion_off(context.network)
    dtype = context.dtype
    autocast = torch.autocast(context.device.type, dtype, enabled=dtype != torch.float32)
    with torch.no_grad(), autocast, fusion:
        run = find_evaluation(task).run
        result = load(run)(context, [records[i] for i in range(len(records))])
    if not isinstance(result, EvalResult):
        raise TypeError(
            f"task {task!r}: {run} returned {type(result).__name__}; expected an EvalResult"
        )
    if output is not None and context.processes.rank == 0:
        write_predictions(Path(output), result)
    return result.metrics


def check_classes(context: EvalContext, task: str) -> None:
    """Raise ValueError if class options are invalid, or are given for a non-detection task."""
    number, classes = context.classes_per_prompt, context.classes
    if SOURCES.get(find_evaluation(task).source, Source()).has_classes:
        if number is not None and number < 0:
            raise ValueError(f"classes_per_prompt is {number}; expected 0 or more")
    elif number is not None or classes is not None:
        given = "classes" if number is None else "classes_per_prompt"
        raise ValueError(f"{given} is not an option of task {task!r}; expected None")


def open_records(data: Data, task: str, split: str) -> RecordSet:
    """Read the records of a split, or check and return the caller's records.

    Raises:
        TypeError: if `data` is neither a path, nor rows, nor records.
        ValueError: if there are no records.
    """
    if is_readable(data):
        path = existing_data(data) if isinstance(data, (str, os.PathLike)) else data
        source = find_evaluation(task).source
        has_objects = "objects" in SOURCES.get(source, Source()).options
        try:
            options = {"objects": True} if has_objects else {}
            records: RecordSet = open_source(source, path, split, **options)
        except ValueError as error:
            raise ValueError(f"task {task!r}: {error}") from None
        for line in skip_lines(records):
            warnings.warn(f"task {task!r}: {line}", RuntimeWarning, stacklevel=3)
    elif isinstance(data, Mapping):
        check_supported(data, f"data: expected a folder, rows or {RECORD_SET}")
        if task not in data:
            raise ValueError(
                f"data has records for {', '.join(map(repr, data)) or 'no task'}, but not for"
                f" {task!r}"
            )
        given: Any = data
        records = given[task]
        check_records(records, f"data for task {task!r}: expected {RECORD_SET}")
    else:
        given = data
        records = given
        check_records(records, f"data: expected a folder, rows or {RECORD_SET}")
    if len(records) == 0:
        raise ValueError(f"task {task!r}: expected at least one record, got none")
    return records


class PermutedImages:
    """Records whose images are permuted so that no record keeps its own image.

    Raises:
        ValueError: if there are fewer than two distinct images.
    """

    def __init__(self, records: RecordSet, seed: int = 0) -> None:
        self.records = records
        images = list(
            dict.fromkeys(image for i in range(len(records)) for image in records[i].images)
        )
        if len(images) < 2:
            raise ValueError(
                f"permute_images requires at least two different images, got {len(images)}"
            )
        random.Random(seed).shuffle(images)
        self._other = dict(zip(images, images[1:] + images[:1], strict=True))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record = self.records[index]
        images = tuple(self._other[image] for image in record.images)
        return dataclasses.replace(record, images=images)


@contextmanager
def fusion_off(model: nn.Module) -> Iterator[None]:
    """Context manager that sets all cross-attention gates to 0, and restores them on exit."""
    gates = [p for name, p in model.named_parameters() if name.rsplit(".", 1)[-1] == "gate"]
    if not gates:
        raise ValueError("fusion=False requires gated cross-attention, which the model has not")
    before = [gate.detach().clone() for gate in gates]
    try:
        for gate in gates:
            gate.data.zero_()
        yield
    finally:
        for gate, value in zip(gates, before, strict=True):
            gate.data.copy_(value)


def write_predictions(path: Path, result: EvalResult) -> None:
    """Write predictions to a file atomically."""
    if result.predictions and isinstance(result.predictions[0], str):
        text = "\n".join(result.predictions) + "\n"
    else:
        text = json.dumps(result.predictions) + "\n"
    with made_folder(path.parent):
        write_text(path, text)
