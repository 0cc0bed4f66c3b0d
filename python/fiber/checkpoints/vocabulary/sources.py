"""Tokenizer and VQA answers of a run, loaded from files or built from the data."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fiber.atomic_io import check_regular_file
from fiber.checkpoints.vocabulary.files import (
    Vocabulary,
    check_strings,
    read_strings,
    read_tokenizer,
)
from fiber.checkpoints.vocabulary.wordpiece import VOCAB_TXT, read_vocab_txt
from fiber.data import Tokenizer
from fiber.data.record import RecordSet
from fiber.messages import shown
from fiber.models.registry import ModelConfig, check_tokenizer

#: Answers of a VQA head in logit order, or the path of a JSON file that lists them.
Answers = Sequence[str] | str | os.PathLike[str]

#: Value of `tokenizer` that requests training a tokenizer on the run's texts.
TRAIN_ONE = "train"
#: Maximum vocabulary size of a trained tokenizer.
TRAINED_TOKENS = 4000


def train_tokenizer(records: Mapping[str, RecordSet]) -> Tokenizer:
    """Train a tokenizer on the texts of all records."""
    texts = [found[index].text for found in records.values() for index in range(len(found))]
    return Tokenizer.train(texts, TRAINED_TOKENS)


def choose_answers(
    records: RecordSet, limit: int, fixed: tuple[str, ...] | None, known: Vocabulary | None
) -> tuple[str, ...]:
    """Choose the answers of the VQA head.

    These are `fixed` if given, else the model's answers if they cover the data, else the `limit`
    most frequent answers of the data.
    """
    counted = count_answers(records, limit)
    if fixed is not None:
        return fixed
    # Keep the model's answers, and therefore its head, if they cover the data.
    return known.answers if known and set(counted) <= set(known.answers) else counted


def open_tokenizer(
    tokenizer: Tokenizer | str | os.PathLike[str] | None, config: ModelConfig | None = None
) -> Tokenizer:
    """Load a tokenizer from a tokenizer.json file or from a folder.

    The folder contains tokenizer.json, RoBERTa's vocab.json and merges.txt, or BERT's vocab.txt. A
    `Tokenizer` is checked and returned unchanged.

    Args:
        tokenizer: tokenizer, file or folder.
        config: config of the model that uses it; by default, its text encoder is RoBERTa.

    Raises:
        ValueError: if `tokenizer` is None, or the model cannot use it.
        FileNotFoundError: if the file does not exist.
    """
    if tokenizer is None:
        raise ValueError(
            "the data has no tokenizer.json. Set tokenizer=... (--tokenizer) to a tokenizer.json, a"
            " fiber.data.Tokenizer or 'train' (to train a tokenizer on the texts), or set init=..."
            " (--init) to a model that has a tokenizer"
        )
    if isinstance(tokenizer, Tokenizer):
        check_tokenizer(tokenizer, config)
        return tokenizer
    path = Path(tokenizer)
    if path.name == VOCAB_TXT and path.is_file():
        return _checked_vocab_txt(path, config)
    if path.is_dir():
        if not (path / "tokenizer.json").exists() and (path / VOCAB_TXT).exists():
            return _checked_vocab_txt(path / VOCAB_TXT, config)
        two = path / "vocab.json", path / "merges.txt"
        if not (path / "tokenizer.json").exists() and all(file.exists() for file in two):
            for file in two:
                check_regular_file(file)
            return Tokenizer.from_vocabulary(*two)
        path = path / "tokenizer.json"
    if not path.exists():
        raise FileNotFoundError(
            f"tokenizer {path} does not exist; pass an existing tokenizer (--tokenizer), or an"
            " initial model that has a tokenizer (--init)"
        )
    return read_tokenizer(path, config)


def _checked_vocab_txt(path: Path, config: ModelConfig | None) -> Tokenizer:
    tokenizer = read_vocab_txt(path)
    try:
        check_tokenizer(tokenizer, config)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    return tokenizer


def open_answers(answers: Answers) -> tuple[str, ...]:
    """Load the answers of a VQA head, or check and return a given list.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the answers are not a list of strings.
    """
    if isinstance(answers, (str, os.PathLike)):
        return read_strings(Path(answers), "answers")
    return check_strings(answers, "answers")


def check_answers(answers: tuple[str, ...]) -> tuple[str, ...]:
    """Check that answers are distinct and not blank. Raises ValueError otherwise.

    One empty answer is allowed, since the answer "a" is normalized to an empty string.
    """
    if not answers:
        raise ValueError("expected at least one answer, got none")
    first: dict[str, int] = {}
    for index, answer in enumerate(answers):
        if answer and not answer.strip():
            raise ValueError(f"answers[{index}]: expected a non-blank string, got {shown(answer)}")
        if answer in first:
            entries = f"entries {first[answer]} and {index}"
            raise ValueError(f"duplicate answer {shown(answer)} ({entries})")
        first[answer] = index
    return answers


def count_answers(records: RecordSet, limit: int) -> tuple[str, ...]:
    """Return the `limit` most frequent answers, counting each record's highest-scoring answer.

    Raises ValueError if a record's `answers` is None. Records with empty `answers` are not counted.
    """
    counts: Counter[str] = Counter()
    for index in range(len(records)):
        record = records[index]
        if record.answers is None:
            raise ValueError(
                f"record {shown(record.key)} has no answers; the question task needs them"
            )
        if record.answers:
            counts[max(record.answers, key=record.answers.__getitem__)] += 1
    ordered = sorted(counts, key=lambda answer: (-counts[answer], answer))
    return tuple(ordered[:limit])
