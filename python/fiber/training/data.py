"""Open the training data: the records of every task, the tokenizer and the answers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fiber.checkpoints.provenance import absolute
from fiber.checkpoints.vocabulary.files import Vocabulary
from fiber.checkpoints.vocabulary.sources import (
    TRAIN_ONE,
    Answers,
    check_answers,
    open_answers,
    open_tokenizer,
    train_tokenizer,
)
from fiber.data import Tokenizer
from fiber.data.datasets.registry import SOURCES
from fiber.data.datasets.resolve import (
    RECORD_SET,
    AmbiguousLayoutError,
    Data,
    check_records,
    check_supported,
    existing_data,
    is_readable,
    open_source,
)
from fiber.data.fingerprint import fingerprint_of
from fiber.data.prompts.absent import AbsentPhrases
from fiber.data.prompts.sampling import SampledPrompts
from fiber.data.record import ConcatRecords, MixedRecords, RecordSet
from fiber.data.skip_report import skip_lines
from fiber.data.storage.held_out import ChosenRecords, divided, is_divisible
from fiber.messages import shown, shown_names
from fiber.tasks.fields import first_part, split_source, task_of
from fiber.training.config.run import RunConfig
from fiber.training.task_training import TaskTraining, trainings_of
from fiber.training.training_data import TrainingData
from fiber.training.validation import kept_evaluation, lacks_held_out


def open_data(
    config: RunConfig,
    data: Data,
    *,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    answers: Answers | None = None,
    known: Vocabulary | None = None,
    from_scratch: bool = True,
    holds_out: bool = False,
    keep: Data | None = None,
) -> TrainingData:
    """Open the records of every active task, the tokenizer and the answers.

    Questions without an answer in the vocabulary are counted and skipped, as in the published code.

    Args:
        config: configuration of the run.
        data: as in `fiber.train`. Records are for the run's only task, or a dict by task.
        tokenizer: tokenizer or its file; "train" trains a tokenizer on all texts. Default: the
            tokenizer of `known`, else the folder's tokenizer.json.
        answers: answers of the VQA head in logit order, or a JSON file that lists them. Default:
            those of `known` if they cover the data, else the most frequent answers of the
            questions, at most model.image_text.num_answers.
        known: vocabulary of the initial model or of the resumed run.
        from_scratch: True if the run has no initial model; `data.train_tokenizer` then applies.
        holds_out: True to hold out a part of data without splits, if the run is validated.
        keep: old data of the same tasks, of which `data.keep_share` of the records are.

    Raises:
        FileNotFoundError: if a folder or file is missing.
        TypeError: if `data` has an unsupported type.
        ValueError: if the records do not match the tasks, a task has no records or too few
            negatives, there is no tokenizer, or answers are invalid or given without questions.
    """
    fixed = None if answers is None else check_answers(open_answers(answers))
    folder_tokenizer = path = None
    if isinstance(data, (str, os.PathLike)):
        path = existing_data(data)
        records = _read_records(config, path, holds_out)
        file = (path if path.is_dir() else path.parent) / "tokenizer.json"
        # Optional next to a file but required in a folder, so that an error names the missing file.
        folder_tokenizer = file if path.is_dir() or file.is_file() else None
    elif is_readable(data):
        records = _read_records(config, data, holds_out)
    else:
        records = _given_records(config, data)
    old = _read_old(config, keep)
    trainings = trainings_of(config.tasks.active())
    lines = [*_check_records(trainings, records), *_check_records(trainings, old, "--keep, ")]
    both = _joined(records, old)
    choice = _choose_answers(config, both, trainings, fixed, known)
    lines += _drop_unusable(trainings, records, choice)
    lines += _drop_unusable(trainings, old, choice, "--keep, ")
    if tokenizer is None:
        tokenizer = known.tokenizer if known else folder_tokenizer
        lacks_one = not known and not (folder_tokenizer and folder_tokenizer.is_file())
        if lacks_one and config.data.train_tokenizer and from_scratch:
            tokenizer = TRAIN_ONE
    if isinstance(tokenizer, str) and tokenizer == TRAIN_ONE:
        tokenizer = train_tokenizer(records)
        lines.append(f"trained a tokenizer with {tokenizer.vocab_size} tokens on the texts")
    classes = next(filter(None, (t.classes(both[name]) for name, t in trainings.items())), ())
    classes = classes or (known.classes if known else ())
    vocabulary = Vocabulary(open_tokenizer(tokenizer, config.model), choice, classes)
    words = vocabulary.tokenizer
    if is_readable(data):
        _sample_prompts(config, trainings, records, words)
    _sample_prompts(config, trainings, old, words)
    for name, found in old.items():
        new = records[name]
        records[name] = MixedRecords(new, found, config.data.keep_share, config.train.seed)
    return TrainingData(
        records=records,
        vocabulary=vocabulary,
        completions=_completions(config, records, trainings, words),
        skipped=tuple(lines),
        path=None if path is None else absolute(path),
    )


def _read_old(config: RunConfig, keep: Data | None) -> dict[str, RecordSet]:
    """Read the old data of a run's tasks; none if they are only evaluated."""
    if keep is None or config.data.keep_share == 0:
        return {}
    try:
        path = existing_data(keep) if isinstance(keep, (str, os.PathLike)) else keep
        return _read_records(config, path, True, kept_evaluation(config))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--keep (keep=...): {error}") from error
    except ValueError as error:
        raise ValueError(
            f"--keep (keep=...): {error}; old data needs what the run trains on, or else"
            " data.keep_share=0, which only evaluates it"
        ) from error


def _check_records(
    trainings: Mapping[str, TaskTraining], records: Mapping[str, RecordSet], what: str = ""
) -> list[str]:
    """Check the records of each task; return what their readers report. `what` begins messages."""
    for name, found in records.items():
        if len(found) == 0:
            raise ValueError(
                f"{what}data for task {name!r}: expected at least one record, got none"
            )
        trainings[task_of(name)].check_records(name, found)
    return [
        f"{what}{name}: {line}" for name, found in records.items() for line in skip_lines(found)
    ]


def _joined(
    records: Mapping[str, RecordSet], old: Mapping[str, RecordSet]
) -> Mapping[str, RecordSet]:
    """Return all records of each task, new ones first."""
    return {
        name: ConcatRecords([found, old[name]]) if name in old else found
        for name, found in records.items()
    }


def _drop_unusable(
    trainings: Mapping[str, TaskTraining],
    records: dict[str, RecordSet],
    answers: tuple[str, ...],
    what: str = "",
) -> list[str]:
    """Drop the records that cannot be trained with some answers; return a line for each task."""
    lines = []
    for name, found in records.items():
        records[name], line = trainings[task_of(name)].usable_records(found, answers)
        lines += [f"{what}{name}: {line}"] if line else []
        if what and not len(records[name]):
            raise ValueError(f"{what}data for task {name!r}: no record can be trained; {line}")
    return lines


def _sample_prompts(
    config: RunConfig,
    trainings: Mapping[str, TaskTraining],
    records: dict[str, RecordSet],
    tokenizer: Tokenizer,
) -> None:
    """Replace records that were read by those of which a prompt is sampled."""
    for name, task in config.tasks.active().items():
        listed = {name: task.sources, first_part(name): task.first_sources}
        for part, sources in listed.items():
            if sources and part in records:
                records[part] = trainings[name].sampled_records(
                    records[part], sources, config, tokenizer
                )


def _completions(
    config: RunConfig,
    records: Mapping[str, RecordSet],
    trainings: Mapping[str, TaskTraining],
    tokenizer: Tokenizer,
) -> dict[str, Callable[[Any], Any]]:
    """Return what completes batches of the records, by their name.

    Batches of the first steps number the records of their own.
    """
    made = {
        name: trainings[task_of(name)].completion(found, config, tokenizer)
        for name, found in records.items()
    }
    return {name: completion for name, completion in made.items() if completion is not None}


def fingerprint(records: RecordSet) -> str:
    """Return a hash of a task's records, which are all read once (see `fiber.data.fingerprint`).

    It covers the annotations, the order of the records, and the relative paths of image files; of
    image files, not the contents. What is sampled every epoch is not part of it: prompts and absent
    phrases. A packed folder is covered with its images.
    """
    if isinstance(records, SampledPrompts | AbsentPhrases):
        return fingerprint(records.records)
    if isinstance(records, ConcatRecords):
        different = {id(part): part for part in records.parts}
        found_in = {key: fingerprint(part) for key, part in different.items()}
        parts = [found_in[id(part)] for part in records.parts]
    elif isinstance(records, MixedRecords):
        own = [fingerprint(records.new), fingerprint(records.old)]
        parts = [*own, records.times, records.indices]
    elif isinstance(records, ChosenRecords):
        parts = [fingerprint(records.records), list(records.indices)]
    else:
        counts = getattr(records, "counts", {})
        before = dict(counts)
        found = fingerprint_of(records)
        if getattr(records, "counts_while_reading", False):
            # The run reads and counts the records again.
            counts.clear()
            counts.update(before)
        return found
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def _read_records(
    config: RunConfig, data: Any, holds_out: bool, evaluation: str | None = None
) -> dict[str, RecordSet]:
    """Read every active task's sources from a folder, an annotation file or rows in memory.

    With `holds_out`, a part of data without splits is held out for `evaluation`, by default that of
    the run, if it is validated.
    """
    evaluation = (evaluation or config.validation.task) if holds_out else None
    records: dict[str, RecordSet] = {}
    for name, task in config.tasks.active().items():
        try:
            # A source that is listed several times is read once.
            read: dict[str, RecordSet] = {}
            for source in (*task.sources, *task.first_sources):
                known, group = split_source(source)
                if known not in read:
                    read[known] = _read_source(config, known, data, task.reads_masks, evaluation)
                if source not in read:
                    read[source] = _of_group(read[known], known, group)
        except AmbiguousLayoutError as error:
            hint = ""
            if error.sources:
                which = "one or more of them" if len(error.sources) > 1 else "that one"
                names = ",".join(error.sources)
                hint = f", or read {which} with --set tasks.{name}.sources={names}"
            raise ValueError(f"task {name!r}: {error}{hint}") from None
        except ValueError as error:
            raise ValueError(f"task {name!r}: {error}") from None
        listed = {name: task.sources, first_part(name): task.first_sources}
        for part, sources in listed.items():
            parts = [read[source] for source in sources]
            if parts:
                records[part] = parts[0] if len(parts) == 1 else ConcatRecords(parts)
    return records


def _given_records(config: RunConfig, data: Any) -> dict[str, RecordSet]:
    """Assign the caller's records to the active tasks."""
    active = config.tasks.active()
    for name, task in active.items():
        if task.first_sources:
            raise ValueError(
                f"tasks.{name}.first_sources: expected none with records, got"
                f" {', '.join(task.first_sources)}; give a data folder"
            )
    expected = f"data: expected a folder, rows, {RECORD_SET} or a dict of these by task"
    if isinstance(data, Mapping):
        check_supported(data, expected)
        if set(data) != set(active):
            raise ValueError(
                f"data has records for {shown_names(data)}; expected the run's tasks:"
                f" {', '.join(map(repr, active))}"
            )
        for name, given in data.items():
            check_records(given, f"data for task {name!r}: expected {RECORD_SET}")
        return dict(data)
    check_records(data, expected)
    if len(active) != 1:
        raise ValueError(
            f"expected a dict of records by task for the tasks {', '.join(active)}, got"
            f" {type(data).__name__}"
        )
    records: RecordSet = data
    return dict.fromkeys(active, records)


def _choose_answers(
    config: RunConfig,
    records: Mapping[str, RecordSet],
    trainings: Mapping[str, TaskTraining],
    fixed: tuple[str, ...] | None,
    known: Vocabulary | None,
) -> tuple[str, ...]:
    """Choose the answers of the VQA head; return () if there is no such head."""
    for name, training in trainings.items():
        chosen = training.choose_answers(records[name], config, fixed, known)
        if chosen is not None:
            return chosen
    if fixed:
        raise ValueError(
            "answers were given, but the run has no question task; its tasks are"
            f" {', '.join(trainings)}"
        )
    # A head that is not trained keeps its answers.
    return known.answers if known and "vqa" in config.model.heads else ()


def check_negatives(task: str, records: RecordSet, losses: Sequence[str]) -> None:
    """Reject ITC or ITM data in which no pair can be a negative for another."""
    first, images, texts = records[0], set(), set()
    for index in range(len(records) if losses else 0):
        record = records[index]
        images.add(record.image_id)
        texts.add(record.text)
        # In this case, two of the pairs differ in both image and text.
        if len(images) > 1 and len(texts) > 1:
            return
    same = []
    if len(images) == 1:
        same.append(f"the same image (image_id {shown(first.image_id)})")
    if len(texts) == 1:
        same.append(f"the same text ({shown(first.text)})")
    if same:
        raise ValueError(
            f"data for task {task!r}: all {len(records)} records have {' and '.join(same)}, so"
            f" {' and '.join(losses)} {'has' if len(losses) == 1 else 'have'} no negatives;"
            " expected at least two different images with different texts"
        )


def _of_group(records: RecordSet, source: str, group: str) -> RecordSet:
    """Choose the records of a group."""
    groups = [records[i].group for i in range(len(records))]
    chosen = [i for i, own in enumerate(groups) if own == group]
    if not chosen:
        known = shown_names(sorted({*groups} - {""}))
        raise ValueError(f"no record of {source} has the group {group!r}; expected one of: {known}")
    return ChosenRecords(records, chosen)


def _read_source(
    config: RunConfig, source: str, data: Any, masks: bool, evaluation: str | None
) -> RecordSet:
    # Invalid boxes can only be dropped; "resample" replaces whole records.
    on_error = "raise" if config.data.on_error == "raise" else "skip"
    options = {"on_error": on_error, "shots": config.data.shots, "masks": masks}
    options = {name: value for name, value in options.items() if name in SOURCES[source].options}
    records = open_source(source, data, config.data.split, **options)
    split = config.validation.split
    if evaluation and lacks_held_out(evaluation, data, split) and is_divisible(records):
        return divided(records, "train")
    return records
