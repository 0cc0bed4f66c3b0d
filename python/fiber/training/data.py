"""From a folder, a file or a user's records to the records of every task of a run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiber.checkpoints.model_dir import Vocabulary
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

#: Number of records that are searched for a box before grounding data are refused.
BOXLESS_RECORDS = 1000


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Records of every active task, and the vocabulary of the model."""

    records: Mapping[str, RecordSet]
    #: Its answers are those of the question task, most frequent first.
    vocabulary: Vocabulary
    #: Messages about records that were skipped or changed, one for each task and kind.
    skipped: tuple[str, ...] = ()
    #: Absolute path of the folder or file of the records; None for records of the caller.
    path: str | None = None

    def fit_model(self, config: RunConfig) -> RunConfig:
        """Set the vocabulary size and the number of answers of the model."""
        model = config.model.with_vocabulary(self.vocabulary.tokenizer.vocab_size)
        if self.vocabulary.answers:
            count = len(self.vocabulary.answers)
            image_text = dataclasses.replace(model.image_text, num_answers=count)
            model = dataclasses.replace(model, image_text=image_text)
        return dataclasses.replace(config, model=model)

    def counts(self) -> dict[str, int]:
        """Return the number of records of each task, which a resumed run checks."""
        return {name: len(records) for name, records in self.records.items()}


def open_data(
    config: RunConfig,
    data: Data,
    *,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    answers: Answers | None = None,
    known: Vocabulary | None = None,
    from_scratch: bool = True,
) -> TrainingData:
    """Find the records of every active task, the tokenizer and the answers.

    Args:
        config: of the run; its tasks name the sources.
        data: a folder or an annotation file, one set of records (for a run with one task) or one
            for each task. Questions without an answer of the model are skipped and counted, as in
            published training.
        tokenizer: tokenizer or its file; "train" trains one on the texts of all tasks. Default:
            that of `known`, else tokenizer.json of the folder.
        answers: answers of the VQA head in the order of its logits, or a JSON file with such a
            list. Default: those of `known` if they cover the data, else the most frequent ones of
            the questions, at most model.image_text.num_answers.
        known: vocabulary of the model that the run starts from.
        from_scratch: whether the run starts without another model, so that `data.train_tokenizer`
            may train a tokenizer.

    Raises:
        FileNotFoundError: if a folder or file is missing, with its name.
        TypeError: if `data` has another type.
        ValueError: if the records do not fit the tasks, a set is empty or has no negatives, there
            is no tokenizer, or answers are given without questions, repeated, blank or empty.
    """
    fixed = None if answers is None else check_answers(open_answers(answers))
    folder_tokenizer = path = None
    if isinstance(data, (str, os.PathLike)):
        path = existing_data(data)
        records = _read_records(config, path)
        file = (path if path.is_dir() else path.parent) / "tokenizer.json"
        # Optional next to a file; for a folder the error names the missing one.
        folder_tokenizer = file if path.is_dir() or file.is_file() else None
    else:
        records = _given_records(config, data)
    _check_records(config, records)
    lines = [f"{name}: {line}" for name, found in records.items() for line in skip_lines(found)]
    choice = _choose_answers(config, records, fixed, known)
    if "question" in records:
        records["question"], missed = _answerable_questions(records["question"], choice)
        lines += missed
    if tokenizer is None:
        tokenizer = known.tokenizer if known else folder_tokenizer
        lacks_one = not known and not (folder_tokenizer and folder_tokenizer.is_file())
        if lacks_one and config.data.train_tokenizer and from_scratch:
            tokenizer = TRAIN_ONE
    if isinstance(tokenizer, str) and tokenizer == TRAIN_ONE:
        tokenizer = train_tokenizer(records)
        lines.append(f"trained a tokenizer of {tokenizer.vocab_size} tokens on the texts")
    classes = classes_of(records["grounding"]) if "grounding" in records else ()
    classes = classes or (known.classes if known else ())
    vocabulary = Vocabulary(open_tokenizer(tokenizer), choice, classes)
    if path is not None and "grounding" in records:
        records["grounding"] = _with_sampled_prompts(
            config, records["grounding"], vocabulary.tokenizer
        )
    return TrainingData(
        records=records,
        vocabulary=vocabulary,
        skipped=tuple(lines),
        path=None if path is None else absolute(path),
    )


def _read_records(config: RunConfig, path: Path) -> dict[str, RecordSet]:
    """Read the sources of every active task from a folder or an annotation file."""
    records: dict[str, RecordSet] = {}
    for name, task in config.tasks.active().items():
        try:
            parts = [_read_source(config, source, path) for source in task.sources]
        except AmbiguousLayoutError as problem:
            raise ValueError(
                f"task {name!r}: {problem}{_other_sources(name, problem.sources)}"
            ) from None
        except ValueError as problem:
            raise ValueError(f"task {name!r}: {problem}") from None
        records[name] = parts[0] if len(parts) == 1 else ConcatRecords(parts)
    return records


def _given_records(
    config: RunConfig, data: RecordSet | Mapping[str, RecordSet]
) -> dict[str, RecordSet]:
    """Assign the caller's records to the active tasks."""
    active = config.tasks.active()
    if isinstance(data, Mapping):
        if set(data) != set(active):
            raise ValueError(
                f"data has records for {', '.join(map(repr, data)) or 'no task'};"
                f" expected one set for each of the run's tasks: {', '.join(map(repr, active))}"
            )
        for name, given in data.items():
            check_records(given, f"data of task {name!r}: expected {RECORD_SET}")
        return dict(data)
    check_records(
        data, f"data: expected a folder, {RECORD_SET} or a dict with such a set for each task"
    )
    if len(active) != 1:
        raise ValueError(
            f"the run has the tasks {', '.join(active)}; give a dict with records for each of them"
        )
    return dict.fromkeys(active, data)


def _check_records(config: RunConfig, records: Mapping[str, RecordSet]) -> None:
    """Check that every task has records that it can learn from.

    Raises:
        ValueError: if a task has none, with its name.
    """
    for name, found in records.items():
        if len(found) == 0:
            raise ValueError(f"data of task {name!r}: expected at least one record, got none")
    if "grounding" in records:
        _check_boxes(records["grounding"])
    if "image_text" in records:
        _check_negatives(records["image_text"], config.tasks.image_text)


def _choose_answers(
    config: RunConfig,
    records: Mapping[str, RecordSet],
    fixed: tuple[str, ...] | None,
    known: Vocabulary | None,
) -> tuple[str, ...]:
    """Choose the answers of the VQA head; () without one.

    Raises:
        ValueError: if answers are given to a run without questions.
    """
    if "question" in records:
        limit = config.model.image_text.num_answers
        return choose_answers(records["question"], limit, fixed, known)
    if fixed:
        raise ValueError(
            "answers are given, but the run has no question task; its tasks are"
            f" {', '.join(config.tasks.active())}"
        )
    # A head that is not trained keeps its answers.
    return known.answers if known and "vqa" in config.model.heads else ()


def _answerable_questions(
    asked: RecordSet, answers: tuple[str, ...]
) -> tuple[RecordSet, list[str]]:
    """Skip questions without an answer of the model; also return a message if there are some."""
    found = answerable(asked, answers)
    missed = len(asked) - len(found)
    if not missed:
        return found, []
    return found, [
        f"question: {missed} of {len(asked)} questions were skipped, since none of their answers is"
        f" among the model's {len(answers)}"
    ]


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


def _with_sampled_prompts(config: RunConfig, records: RecordSet, tokenizer: Tokenizer) -> RecordSet:
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


def _read_source(config: RunConfig, source: str, data: Path) -> RecordSet:
    """Read one source the way that the run's config asks for."""
    options: dict[str, Any] = {}
    if source in BOX_SOURCES:
        # Boxes that are none are left out; no other record takes their place.
        options["on_error"] = "raise" if config.data.on_error == "raise" else "skip"
    if source == "detection":
        options["shots"] = config.data.shots
    return open_source(source, data, config.data.split, **options)
