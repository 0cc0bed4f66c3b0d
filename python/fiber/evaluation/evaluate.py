"""Measure a finished model on a task: the metric of a split, and predictions in official formats.

Two switches turn the model's own strengths off, to show that they are used: `permute_images` gives
every record the picture of another one, `fusion=False` closes every gate.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fiber.atomic_io import write_file
from fiber.checkpoints.model_dir import NO_TOKENIZER, StoredModel
from fiber.checkpoints.provenance import seen_before
from fiber.config_io import nearest
from fiber.data import sources
from fiber.data.datasets.resolve import RECORD_SET, Data, check_records, existing_data, open_source
from fiber.data.prompts.classes import ClassName
from fiber.data.record import Record, RecordSet
from fiber.data.skip_report import skip_lines
from fiber.data.text_lengths import text_warnings
from fiber.evaluation import detection, grounding, image_text, retrieval
from fiber.evaluation.context import Measure, Measured, Subject

#: For each task: the head that it asks, the reader of its records, how it is measured.
TASKS: dict[str, tuple[str, Any, Measure]] = {
    "retrieval": ("itc", sources.captions, retrieval.retrieval),
    "matching": ("itm", sources.captions, image_text.matching),
    "masked_words": ("mlm", sources.captions, image_text.masked_words),
    "caption": ("caption", sources.captions, image_text.caption),
    "vqa": ("vqa", sources.questions, image_text.vqa),
    "nlvr2": ("nlvr2", sources.reasoning, image_text.nlvr2),
    "winoground": ("itm", sources.swapped, image_text.winoground),
    "refcoco": ("grounding", sources.referring, grounding.refcoco),
    "flickr": ("grounding", sources.phrases, grounding.flickr),
    "coco": ("grounding", sources.detection, detection.coco),
    "lvis": ("grounding", sources.detection, detection.lvis),
}


@torch.no_grad()
def evaluate(
    model: StoredModel,
    task: str,
    *,
    data: Data,
    split: str = "val",
    output: str | os.PathLike[str] | None = None,
    permute_images: bool = False,
    fusion: bool = True,
    candidates: int = 0,
    classes_per_prompt: int | None = None,
    classes: Sequence[ClassName] | None = None,
    batch_size: int = 64,
    threads: int = 0,
) -> dict[str, float]:
    """Measure a model.

    Args:
        model: with its tokenizer and, for vqa, its answers; it is set to evaluation mode.
        task: a key of `TASKS`.
        data: a data folder, an annotation file of any form that `fiber.data.open_source` knows, or
            records of your own (with what the task needs).
        split: of the folder or file; "+" joins several.
        output: where to write the predictions: JSON; CSV for nlvr2, as its authors' script reads.
        permute_images: give every record another record's picture.
        fusion: False switches the cross-attentions off.
        candidates: of "retrieval": how many of the best of each query by contrast (ITC) are ordered
            again by matching (ITM); as many as there are, or more, score every pair.
        classes_per_prompt: of tasks that detect classes: how many a text asks for at most; 0: as
            many as fit; default: 40 for "lvis", as published, else as many as fit.
        classes: of the same tasks: what a text says for each class, by their ids; default: their
            names.
        batch_size: records at a time.
        threads: of the loader; 0 uses every core.

    Returns:
        Metrics by name, fractions in [0, 1] but for `cider_d`, which goes up to 10; those of a
        group of records as "group/metric".

    Raises:
        TypeError: if the data are no folder and no set of records.
        ValueError: for an unknown task, a missing head or tokenizer, records without what the task
            needs, or a box that reaches more than a pixel outside its picture.
    """
    _, reader, measure = find_task(task)
    head = needed_head(task, model.config.heads)
    if head not in model.config.heads:
        raise ValueError(
            f"task {task!r} needs the head {head!r}; the model has {', '.join(model.config.heads)}"
        )
    if model.tokenizer is None:
        raise ValueError(NO_TOKENIZER)
    if candidates:
        check_candidates(task, model.config.heads, candidates)
    check_classes(task, classes_per_prompt, classes)
    records = open_records(data, task, split, reader)
    if isinstance(data, (str, os.PathLike)):
        seen = seen_before(model.trained_on, reader.__name__, data, split)
        if seen:
            warnings.warn(f"task {task!r}: {seen}", RuntimeWarning, stacklevel=2)
    # Captions that are written are compared with texts that no model reads; of prompts for boxes
    # the reader says what does not fit.
    if head not in ("caption", "grounding"):
        for line in text_warnings(records, model.tokenizer, model.config.max_tokens):
            warnings.warn(f"task {task!r}: {line}", RuntimeWarning, stacklevel=2)
    if permute_images:
        records = PermutedImages(records)
    subject = Subject(
        network=model.model.eval(),
        tokenizer=model.tokenizer,
        answers=model.answers,
        batch_size=batch_size,
        threads=threads,
        own_pictures=not permute_images,
        candidates=candidates,
        classes_per_prompt=classes_per_prompt,
        classes=classes,
    )
    with fusion_off(model.model) if not fusion else _unchanged():
        measured = measure(subject, records)
    if output is not None:
        write_predictions(Path(output), measured)
    return measured.metrics


def find_task(task: str) -> tuple[str, Any, Measure]:
    """Look a task up.

    Raises:
        ValueError: if there is none of that name, with the nearest ones.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r} does not exist; {nearest(task, TASKS)}")
    return TASKS[task]


def needed_head(task: str, heads: Sequence[str]) -> str:
    """Name the head that a task asks of a model: retrieval does with matching alone."""
    head, *_ = find_task(task)
    return "itm" if task == "retrieval" and "itc" not in heads and "itm" in heads else head


def check_candidates(task: str, heads: Sequence[str], candidates: int) -> None:
    """Check that candidates can be ordered again.

    Raises:
        ValueError: if the task has no candidates, the model no matching head, or the number is
            below 0.
    """
    if task != "retrieval":
        raise ValueError(f"{candidates} candidates, but task {task!r} ranks nothing; expected 0")
    if "itm" not in heads:
        raise ValueError(
            f"{candidates} candidates need the head 'itm' to be ordered again; the model has"
            f" {', '.join(heads)}"
        )
    if candidates < 0:
        raise ValueError(f"{candidates} candidates; expected 0 or more")


def check_classes(
    task: str, classes_per_prompt: int | None, classes: Sequence[ClassName] | None
) -> None:
    """Check that a task detects classes where something is said of them.

    Raises:
        ValueError: if it does not, or the number is below 0.
    """
    if find_task(task)[1] is sources.detection:
        if classes_per_prompt is not None and classes_per_prompt < 0:
            raise ValueError(f"{classes_per_prompt} classes in a prompt; expected 0 or more")
    elif classes_per_prompt is not None or classes is not None:
        given = "classes" if classes_per_prompt is None else "classes_per_prompt"
        raise ValueError(f"{given} is given, but task {task!r} detects no classes; expected None")


def open_records(data: Data, task: str, split: str, reader: Any) -> RecordSet:
    """Read the records of a split, or hand a user's own on.

    Raises:
        TypeError: if the data are nothing of the kind.
        ValueError: if there are none.
    """
    if isinstance(data, (str, os.PathLike)):
        path = existing_data(data)
        try:
            options = {"objects": True} if reader is sources.detection else {}
            records: RecordSet = open_source(reader.__name__, path, split, **options)
        except ValueError as problem:
            raise ValueError(f"task {task!r}: {problem}") from None
        for line in skip_lines(records):
            warnings.warn(f"task {task!r}: {line}", RuntimeWarning, stacklevel=3)
    elif isinstance(data, Mapping):
        if task not in data:
            raise ValueError(
                f"data has records for {', '.join(map(repr, data)) or 'no task'}, not for {task!r}"
            )
        records = data[task]
        check_records(records, f"data of task {task!r}: expected {RECORD_SET}")
    else:
        records = data
        check_records(records, f"data: expected a folder or {RECORD_SET}")
    if len(records) == 0:
        raise ValueError(f"task {task!r}: expected at least one record, got none")
    return records


class PermutedImages:
    """Records with their pictures exchanged: everyone shows a picture that is not its own."""

    def __init__(self, records: RecordSet, seed: int = 0) -> None:
        """Args: records of at least two different pictures; the seed of the exchange."""
        self.records = records
        images = list(
            dict.fromkeys(image for i in range(len(records)) for image in records[i].images)
        )
        if len(images) < 2:
            raise ValueError("permute_images needs records of at least two different pictures")
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
    """Close every gate, so that neither tower reads the other; they open again at the end."""
    gates = [p for name, p in model.named_parameters() if name.rsplit(".", 1)[-1] == "gate"]
    before = [gate.detach().clone() for gate in gates]
    try:
        with torch.no_grad():
            for gate in gates:
                gate.zero_()
        yield
    finally:
        with torch.no_grad():
            for gate, value in zip(gates, before, strict=True):
                gate.copy_(value)


@contextmanager
def _unchanged() -> Iterator[None]:
    yield


def write_predictions(path: Path, measured: Measured) -> None:
    """Write what a model said, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if measured.predictions and isinstance(measured.predictions[0], str):
        text = "\n".join(measured.predictions) + "\n"
    else:
        text = json.dumps(measured.predictions) + "\n"
    write_file(path, lambda part: part.write_text(text, encoding="utf-8"))
