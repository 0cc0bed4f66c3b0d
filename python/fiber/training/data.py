"""From a folder, a file or a user's records to the records of every task of a run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiber.checkpoints.model_dir import Words
from fiber.checkpoints.provenance import absolute
from fiber.checkpoints.vocabulary import (
    TRAIN_ONE,
    Answers,
    check_answers,
    choose_answers,
    open_answers,
    open_tokenizer,
    train_tokenizer,
)
from fiber.data import Tokenizer
from fiber.data.datasets.resolve import (
    RECORD_SET,
    AmbiguousLayoutError,
    ChosenRecords,
    Data,
    check_records,
    existing_data,
    open_source,
)
from fiber.data.prompts.sampling import SampledPrompts
from fiber.data.record import ConcatRecords, RecordSet
from fiber.data.skip_report import classes_of, skip_lines
from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import BOX_SOURCES, CLASS_SOURCES, ImageTextTask

#: As many records without a box are looked at before they are taken for records without boxes.
BOXLESS_RECORDS = 1000


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Records of every active task, and the words and answers that the model has to know."""

    records: Mapping[str, RecordSet]
    #: The answers are those of a question task, most frequent first.
    words: Words
    #: What was left out of the records or made of them, in words, a line for each task and kind.
    left_out: tuple[str, ...] = ()
    #: Absolute path of the folder or file that the records come from; None for a user's records.
    path: str | None = None

    def fit_model(self, config: RunConfig) -> RunConfig:
        """Give the model this tokenizer's vocabulary and this many answers."""
        model = config.model.with_vocabulary(self.words.tokenizer.vocab_size)
        if self.words.answers:
            count = len(self.words.answers)
            image_text = dataclasses.replace(model.image_text, num_answers=count)
            model = dataclasses.replace(model, image_text=image_text)
        return dataclasses.replace(config, model=model)

    def counts(self) -> dict[str, int]:
        """Number of records of each task: what a resumed run checks."""
        return {name: len(records) for name, records in self.records.items()}


def open_data(
    config: RunConfig,
    data: Data,
    *,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    answers: Answers | None = None,
    known: Words | None = None,
    from_nothing: bool = True,
) -> TrainingData:
    """Find the records of every active task, the tokenizer and the answers.

    Args:
        config: says which tasks and sources.
        data: a folder or an annotation file, one set of records (for a run with one task) or one
            for each task. Questions of which no answer is among the model's are left out, as in
            published training, and counted.
        tokenizer: one, or its file; by default that of `known`, else tokenizer.json in the folder;
            "train": one is trained on the texts of all tasks.
        answers: of the VQA head, in the order of its logits, or a JSON file with a list of them;
            by default those of `known`, else the most frequent ones of the questions, at most
            model.image_text.num_answers.
        known: words of a model that this run starts from. Its answers are kept if all that would
            be counted are among them.
        from_nothing: whether the run starts from no other model, so that it may have any tokenizer
            (`data.train_tokenizer`).

    Raises:
        FileNotFoundError: if a folder or file is missing, with its name.
        TypeError: if `data` is nothing of the kind.
        ValueError: if the records do not fit the tasks, a set is empty or has nothing to contrast,
            there is no tokenizer, or there are answers but no questions, or an answer twice, blank
            or none.
    """
    active = config.tasks.active()
    fixed = None if answers is None else check_answers(open_answers(answers))
    records: dict[str, RecordSet] = {}
    in_folder = where = None
    if isinstance(data, (str, os.PathLike)):
        path = existing_data(data)
        where = absolute(path)
        for name, task in active.items():
            try:
                parts = [_read(config, source, path) for source in task.sources]
            except AmbiguousLayoutError as problem:
                raise ValueError(
                    f"task {name!r}: {problem}{_other_sources(name, problem.sources)}"
                ) from None
            except ValueError as problem:
                raise ValueError(f"task {name!r}: {problem}") from None
            records[name] = parts[0] if len(parts) == 1 else ConcatRecords(parts)
        beside = (path if path.is_dir() else path.parent) / "tokenizer.json"
        # A file need not have one beside it; of a folder the missing file is named.
        in_folder = beside if path.is_dir() or beside.is_file() else None
    elif isinstance(data, Mapping):
        if set(data) != set(active):
            raise ValueError(
                f"data has records for {', '.join(map(repr, data)) or 'no task'};"
                f" expected one set for each of the run's tasks: {', '.join(map(repr, active))}"
            )
        for name, given in data.items():
            check_records(given, f"data of task {name!r}: expected {RECORD_SET}")
        records = dict(data)
    else:
        check_records(
            data, f"data: expected a folder, {RECORD_SET} or a dict with such a set for each task"
        )
        if len(active) != 1:
            raise ValueError(
                f"the run has the tasks {', '.join(active)};"
                " give a dict with records for each of them"
            )
        records = dict.fromkeys(active, data)
    for name, found in records.items():
        if len(found) == 0:
            raise ValueError(f"data of task {name!r}: expected at least one record, got none")
    if "grounding" in records:
        _check_boxes(records["grounding"])
    if "image_text" in records:
        _check_negatives(records["image_text"], config.tasks.image_text)
    lines = [f"{name}: {line}" for name, found in records.items() for line in skip_lines(found)]
    vocabulary: tuple[str, ...] = ()
    if "question" in records:
        asked = records["question"]
        limit = config.model.image_text.num_answers
        vocabulary = choose_answers(asked, limit, fixed, known)
        records["question"] = answerable(asked, vocabulary)
        missed = len(asked) - len(records["question"])
        if missed:
            lines.append(
                f"question: {missed} of {len(asked)} questions were left out, since none of their"
                f" answers is among the model's {len(vocabulary)}"
            )
    elif fixed:
        raise ValueError(
            "there are answers, but the run has no task of questions that they are for; its tasks"
            f" are {', '.join(active)}"
        )
    elif known and "vqa" in config.model.heads:
        # A head that is not trained now keeps what it knows.
        vocabulary = known.answers
    if tokenizer is None:
        tokenizer = known.tokenizer if known else in_folder
        lacks_one = not known and not (in_folder and in_folder.is_file())
        if lacks_one and config.data.train_tokenizer and from_nothing:
            tokenizer = TRAIN_ONE
    if isinstance(tokenizer, str) and tokenizer == TRAIN_ONE:
        tokenizer = train_tokenizer(records)
        lines.append(f"a tokenizer of {tokenizer.vocab_size} tokens was trained on the texts")
    classes = classes_of(records["grounding"]) if "grounding" in records else ()
    classes = classes or (known.classes if known else ())
    words = Words(open_tokenizer(tokenizer), vocabulary, classes)
    if where is not None and "grounding" in records:
        records["grounding"] = _with_drawn_prompts(config, records["grounding"], words.tokenizer)
    return TrainingData(records=records, words=words, left_out=tuple(lines), path=where)


def _check_boxes(records: RecordSet) -> None:
    """Look for a box in records that are to teach boxes; pictures without one may be among them.

    Raises:
        ValueError: if none of them has one; of many, evenly spaced ones are looked at.
    """
    looked_at = range(0, len(records), -(-len(records) // BOXLESS_RECORDS))
    if not any(records[index].boxes_xyxy for index in looked_at):
        raise ValueError(
            f"data of task 'grounding': expected records with boxes_xyxy; the {len(looked_at)}"
            f" looked at have none, the first is {records[0].key!r}"
        )


def _check_negatives(records: RecordSet, task: ImageTextTask) -> None:
    """Look for a pair that another one is a negative of, where losses need one.

    Raises:
        ValueError: if all records show the same picture or all say the same.
    """
    losses = [name for name in ("itc", "itm") if task.weights()[name] > 0]
    first, pictures, texts = records[0], set(), set()
    for index in range(len(records) if losses else 0):
        record = records[index]
        pictures.add(record.image_id)
        texts.add(record.text)
        # Two pairs among them then differ in both, whichever belong together.
        if len(pictures) > 1 and len(texts) > 1:
            return
    same = []
    if len(pictures) == 1:
        same.append(f"the same picture (image_id {first.image_id!r:.80})")
    if len(texts) == 1:
        same.append(f"the same text ({first.text!r:.60})")
    if same:
        raise ValueError(
            f"data of task 'image_text': all {len(records)} records have {' and '.join(same)},"
            f" which gives {' and '.join(losses)} no negative; expected at least two different"
            " pictures with different texts"
        )


def _with_drawn_prompts(config: RunConfig, records: RecordSet, tokenizer: Tokenizer) -> RecordSet:
    """Give pictures with classes texts of their own; `records` are those of the task's sources."""
    task = config.tasks.grounding
    parts = [records]
    if len(task.sources) > 1 and isinstance(records, ConcatRecords):
        parts = records.parts
    drawn = [
        SampledPrompts(
            part,
            tokenizer,
            max_tokens=config.model.max_tokens,
            rules=task.prompt_rules(),
            seed=config.train.seed,
        )
        if source in CLASS_SOURCES
        else part
        for source, part in zip(task.sources, parts, strict=True)
    ]
    return ConcatRecords(drawn) if len(drawn) > 1 else drawn[0]


def answerable(records: RecordSet, answers: Sequence[str]) -> RecordSet:
    """Choose the questions that have an answer of a vocabulary; all of them: the set as it is.

    Raises:
        ValueError: if there is none.
    """
    known = set(answers)
    chosen = [i for i in range(len(records)) if not known.isdisjoint(records[i].answers or ())]
    if not chosen:
        first = records[0]
        wanted = f"one of the model's {len(known)}" if known else "any"
        raise ValueError(
            f"data of task 'question': expected questions with answers; none of the {len(records)}"
            f" has {wanted}, the first, record {first.key!r}, has"
            f" {', '.join(map(repr, first.answers or ())) or 'none':.60}"
        )
    return records if len(chosen) == len(records) else ChosenRecords(records, chosen)


def _other_sources(task: str, names: Sequence[str]) -> str:
    """Say how a task reads a folder's forms by the names of their data sets, if they have any."""
    if not names:
        return ""
    which = "one or more of them" if len(names) > 1 else "that one"
    return f", or read {which} with --set tasks.{task}.sources={','.join(names)}"


def _read(config: RunConfig, source: str, data: Path) -> RecordSet:
    """Read one source the way that the run's config asks for."""
    options: dict[str, Any] = {}
    if source in BOX_SOURCES:
        # Boxes that are none are left out; no other record takes their place.
        options["on_error"] = "raise" if config.data.on_error == "raise" else "skip"
    if source == "detection":
        options["shots"] = config.data.shots
    return open_source(source, data, config.data.split, **options)
