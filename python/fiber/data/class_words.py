"""What a prompt says for each class, from a JSON file: names, and words around them.

    ["fish", {"name": "puffin", "suffix": " with orange beaks"}]

The words around a name are read by the model; the name alone says how well a box fits, as in the
published prompts for ODinW.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from fiber.data.prompts import SEPARATOR, Encoder, Prompt, clean_class_name


class ClassWords(NamedTuple):
    """A class in a prompt; prefix and suffix stand beside the name as they are."""

    name: str
    prefix: str = ""
    suffix: str = ""

    @property
    def text(self) -> str:
        """All words."""
        return f"{self.prefix}{clean_class_name(self.name)}{self.suffix}"


def read_class_words(path: str | PathLike[str]) -> list[ClassWords] | dict[str, list[ClassWords]]:
    """Read the words of the classes of one data set, or of several by their names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not as described above, with file, data set and place.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} does not exist; expected a JSON list of classes, such as"
            ' ["fish", {"name": "puffin", "suffix": " with orange beaks"}]'
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path} is not JSON ({problem}); expected a list of classes") from None
    return _checked(data, str(path))


def given_class_words(given: Any, task: str) -> Any:
    """Check what a user gave for a task: a file or what it holds.

    Returns:
        A list of `ClassWords`; for "odinw" such lists by the names of the sets; or None.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not as described above, or of the other kind.
    """
    if given is None:
        return None
    if isinstance(given, (str, PathLike)):
        where, words = str(given), read_class_words(given)
    else:
        where = "class_words"
        words = _checked(given, where)
    if isinstance(words, dict) != (task == "odinw"):
        kind = "lists by the names of data sets" if task == "odinw" else "one list of classes"
        raise ValueError(f"{where}: expected {kind} for task {task!r}")
    return words


def _checked(data: Any, where: str) -> list[ClassWords] | dict[str, list[ClassWords]]:
    if isinstance(data, dict):
        return {name: as_class_words(given, f"{where}: {name!r}") for name, given in data.items()}
    return as_class_words(data, where)


def as_class_words(given: Any, where: str) -> list[ClassWords]:
    """Check a list of classes: names, or objects with "name" and "prefix" and "suffix".

    Raises:
        ValueError: for anything else, with the place.
    """
    if not isinstance(given, list):
        raise ValueError(f"{where} is a {type(given).__name__}; expected a list of classes")
    return [_words(entry, f"{where}: class {number}") for number, entry in enumerate(given)]


def _words(entry: Any, where: str) -> ClassWords:
    if isinstance(entry, ClassWords):
        return entry
    fields = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, dict) or not set(fields) <= set(ClassWords._fields):
        raise ValueError(
            f"{where} is {str(entry)[:60]!r}; expected a name, or an object with 'name' and, if"
            " needed, 'prefix' and 'suffix'"
        )
    if not all(isinstance(value, str) for value in fields.values()):
        raise ValueError(f"{where} is {str(entry)[:60]!r}; expected texts")
    words = ClassWords(**{"name": "", **fields})
    if not clean_class_name(words.name).strip():
        raise ValueError(f"{where} has no name: {str(entry)[:60]!r}")
    return words


def words_prompts(
    classes: Sequence[ClassWords], tokenizer: Encoder, max_tokens: int, max_classes: int = 0
) -> list[Prompt]:
    """Join classes into prompts that fit the text tower, in order, the spans those of the names.

    Args:
        classes: any number.
        tokenizer: that of the model.
        max_tokens: longest text in tokens, <s> and </s> included.
        max_classes: of a prompt at most; 0: as many as fit.

    Raises:
        ValueError: for a class that does not fit alone, by its number.
    """
    prompts, start = [], 0
    while start < len(classes):
        end = min(start + max_classes, len(classes)) if max_classes else len(classes)
        while _num_tokens(classes[start:end], tokenizer) > max_tokens and end > start + 1:
            end -= 1
        if _num_tokens(classes[start:end], tokenizer) > max_tokens:
            raise ValueError(
                f"class {start} ({classes[start].text[:60]!r}) does not fit into {max_tokens}"
                " tokens"
            )
        prompts.append(_joined(classes[start:end], start))
        start = end
    return prompts


def _num_tokens(classes: Sequence[ClassWords], tokenizer: Encoder) -> int:
    return len(tokenizer.encode(SEPARATOR.join(words.text for words in classes))[0])


def _joined(classes: Sequence[ClassWords], first: int) -> Prompt:
    spans, position = [], 0
    for words in classes:
        start = position + len(words.prefix)
        spans.append(((start, start + len(clean_class_name(words.name))),))
        position += len(words.text) + len(SEPARATOR)
    text = SEPARATOR.join(words.text for words in classes)
    return Prompt(text, tuple(words.name for words in classes), tuple(spans), first)
