"""Files of a vocabulary in a model folder: tokenizer.json, answers.json and classes.json."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fiber.atomic_io import check_regular_file, read_json, write_json
from fiber.data import Tokenizer
from fiber.messages import shown

if TYPE_CHECKING:
    from fiber.models.model_config import ModelConfig

#: Names of the files.
VOCABULARY_FILES = ("tokenizer.json", "answers.json", "classes.json")
#: Maximum size in bytes of the JSON files of a model, except tokenizer.json.
MAX_JSON_BYTES = 16 << 20
#: Maximum number of answers or classes of a model, and of characters in each. A detector looks for
#: all of its classes in each image, some dozens at a time.
MAX_STRINGS, MAX_STRING = 50_000, 1000
_SURROGATE = re.compile("[\ud800-\udfff]")

#: Error messages for models that lack a vocabulary, such as published checkpoints.
NO_TOKENIZER = (
    "the model has no tokenizer; pass the one that it was trained with (--tokenizer DIR, or"
    ' fiber.load(path, tokenizer="folder")), or add it to the model:'
    " `fiber convert MODEL OUT --to fiber --tokenizer DIR`"
)
NO_ANSWERS = (
    "the model has no answers for its VQA head; pass them in logit order (--answers"
    ' FILE, or fiber.load(path, answers="answers.json")), or add them to the model:'
    " `fiber convert MODEL OUT --to fiber --answers FILE`. `fiber data answers DIR --output FILE`"
    " builds the answers of the published head from the official VQAv2 annotations"
)
NO_CLASSES = (
    "the model was not trained on a fixed set of classes; pass the classes to detect (--classes"
    ' "mug; laptop", or model.detect(images, ["mug", "laptop"]))'
)


class Vocabulary(NamedTuple):
    """Tokenizer, VQA answers and detection classes of a model."""

    tokenizer: Tokenizer
    #: Answers of the VQA head in logit order; empty without a VQA head.
    answers: tuple[str, ...] = ()
    #: Classes that a detector was trained on; empty if it was trained on phrases only.
    classes: tuple[str, ...] = ()


def write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """Write tokenizer.json. Also write answers.json and classes.json unless they are empty."""
    vocabulary.tokenizer.save(folder / "tokenizer.json")
    write_lists(folder, answers=vocabulary.answers, classes=vocabulary.classes)


def read_tokenizer(path: str | os.PathLike[str], config: ModelConfig | None = None) -> Tokenizer:
    """Read tokenizer.json and check it for a model; see `check_tokenizer`.

    Raises:
        ValueError: if the file is no tokenizer, or the model cannot use it.
    """
    # Needs torch, which the messages of this module do not.
    from fiber.models.registry import check_tokenizer

    check_regular_file(Path(path))
    try:
        tokenizer = Tokenizer.from_file(path)
    except ValueError as problem:
        raise ValueError(f"{problem}; expected a tokenizer.json") from None
    try:
        check_tokenizer(tokenizer, config)
    except ValueError as problem:
        raise ValueError(f"{os.fspath(path)}: {problem}") from None
    return tokenizer


def read_vocabulary(folder: Path, config: ModelConfig | None = None) -> Vocabulary | None:
    """Read the tokenizer, answers and classes, or return None if there is no tokenizer.

    The tokenizer is checked for a model; see `check_tokenizer`.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    return Vocabulary(
        read_tokenizer(path, config), read_list(folder, "answers"), read_list(folder, "classes")
    )


def write_lists(folder: Path, **lists: tuple[str, ...]) -> None:
    """Write a JSON file for each list that is not empty."""
    for name, texts in lists.items():
        if texts:
            write_json(folder / f"{name}.json", list(texts))


def read_list(folder: Path, name: str) -> tuple[str, ...]:
    """Read a list of a model folder, which is empty if there is no file."""
    path = folder / f"{name}.json"
    return read_strings(path, name) if path.exists() else ()


def read_strings(path: Path, name: str) -> tuple[str, ...]:
    """Read a JSON list of strings; `name` is what they are, for errors.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not a list of strings.
    """
    strings = check_strings(read_json(path, MAX_JSON_BYTES), f"{path}: {name}")
    if len(strings) > MAX_STRINGS:
        raise ValueError(f"{path}: {name}: expected at most {MAX_STRINGS:,}, got {len(strings):,}")
    return strings


def check_strings(values: Any, where: str) -> tuple[str, ...]:
    """Check a list of strings. Raises ValueError, starting with `where`, if it is none."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(
            f"{where}: expected a list of strings, got {type(values).__name__} {shown(values)}"
        )
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"{where}[{index}]: expected a string, got {shown(value)}")
        if len(value) > MAX_STRING:
            raise ValueError(f"{where}[{index}]: expected a short string, got {shown(value)}")
        if _SURROGATE.search(value):
            raise ValueError(
                f"{where}[{index}]: {shown(value)} has a lone surrogate; expected valid Unicode"
            )
    return tuple(values)
