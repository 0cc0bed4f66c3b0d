"""Detector prompts, and the spans of their labels.

A prompt is one caption that names every label (a class or a phrase): "mug. traffic light".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from fiber.atomic_io import read_json
from fiber.data.char_spans import CharSpan
from fiber.data.record import AnyPath

#: Separator of labels, as published; not after the last one.
SEPARATOR = ". "


class Encoder(Protocol):
    """The part of a tokenizer that prompts need."""

    def encode(self, text: str, /) -> tuple[list[int], Any]:
        """Return token ids, <s> and </s> included, and anything else."""
        ...


@dataclass(frozen=True)
class ClassName:
    """A class name with surrounding words, such as "puffin" in "puffin with orange beaks".

    The model reads all of it; the tokens of the name alone determine the score of a box.

    Raises:
        TypeError: if a field is not a string.
    """

    name: str
    #: Text before the name, including any space between them.
    prefix: str = ""
    #: Text after the name, including any space between them.
    suffix: str = ""

    def __post_init__(self) -> None:
        for part in fields(self):
            value = getattr(self, part.name)
            if not isinstance(value, str):
                raise TypeError(
                    f"class {self.name!r:.60}: {part.name} is the {type(value).__name__}"
                    f" {value!r:.60}; expected a str"
                )

    @property
    def text(self) -> str:
        """Text of the class in a prompt."""
        return f"{self.prefix}{clean_class_name(self.name)}{self.suffix}"


#: Class argument of public functions; a mapping has the fields of `ClassName`.
ClassLike = str | ClassName | Mapping[str, str]


@dataclass(frozen=True)
class Prompt:
    """A caption with the spans of its labels."""

    text: str
    #: Name of each label in results.
    labels: tuple[str, ...]
    #: For each label, the half-open spans of code points of `text` that name it.
    spans: tuple[tuple[CharSpan, ...], ...]
    #: Index of the first label in the user's list; above 0 if the list was split.
    first_label: int = 0

    def token_map(self, offsets: Sequence[CharSpan]) -> list[list[int]]:
        """Find the tokens of each label.

        Args:
            offsets: half-open span of code points of each token; empty for special tokens.

        Returns:
            For each label, the indices of the tokens that overlap its spans; an empty list if the
            text was truncated before the label.
        """
        return [
            [
                token
                for token, (first, last) in enumerate(offsets)
                if any(max(first, start) < min(last, end) for start, end in spans)
            ]
            for spans in self.spans
        ]


def clean_class_name(name: str) -> str:
    """Write a class name as in the published prompts.

    Drop parenthesized parts, replace underscores by spaces, and pairs of spaces by one. A space
    before a parenthesis stays: "hot_dog" -> "hot dog", "bow_(ribbon)" -> "bow ".
    """
    return re.sub(r"\(.*\)", "", name).replace("_", " ").replace("  ", " ")


def as_class(given: Any, number: int) -> ClassName:
    """Convert a user's class to `ClassName`.

    Args:
        given: a name, a `ClassName`, or a mapping such as {"prefix": "", "name": "puffin",
            "suffix": " with orange beaks"}, of which "name" is required.
        number: index in the user's list, for messages.

    Raises:
        TypeError: for any other type.
        ValueError: for a mapping with other keys or without a name, or an empty name.
    """
    if isinstance(given, str):
        found = ClassName(given)
    elif isinstance(given, ClassName):
        found = given
    elif isinstance(given, Mapping):
        known = [part.name for part in fields(ClassName)]
        if "name" not in given or not set(given) <= set(known):
            raise ValueError(
                f"class {number} has the keys {', '.join(map(repr, given)) or '(none)'};"
                f" expected 'name', and optionally 'prefix' and 'suffix'"
            )
        found = ClassName(**given)
    else:
        raise TypeError(
            f"class {number} is the {type(given).__name__} {given!r:.60}; expected a str, a"
            " ClassName or a mapping with 'prefix', 'name' and 'suffix'"
        )
    if not clean_class_name(found.name).strip():
        raise ValueError(f"class {number} ({found.name!r}) is empty; expected words")
    return found


def class_prompt(classes: Sequence[ClassLike]) -> Prompt:
    """Join classes, with names cleaned by `clean_class_name`: "mug. traffic light".

    Raises:
        TypeError, ValueError: for an invalid class or an empty name, with its number.
    """
    named = [as_class(given, number) for number, given in enumerate(classes)]
    return _class_prompt(named, class_labels(named), 0)


def class_labels(classes: Sequence[ClassName]) -> list[str]:
    """Return the name of each class in results.

    Classes with the same name include the surrounding words: "red star" and "wooden star".
    """
    times = Counter(each.name for each in classes)
    return [
        each.name if times[each.name] == 1 else f"{each.prefix}{each.name}{each.suffix}".strip()
        for each in classes
    ]


def class_prompts(
    classes: Sequence[ClassLike],
    tokenizer: Encoder,
    max_tokens: int,
    *,
    max_classes: int | None = None,
) -> list[Prompt]:
    """Join classes into as few prompts as fit the text encoder, in order.

    Args:
        classes: any number of classes.
        tokenizer: of the model.
        max_tokens: maximum text length in tokens, <s> and </s> included.
        max_classes: split classes into blocks of this size first (published: 40 for LVIS).

    Returns:
        Prompts whose `first_label` is an index into `classes`.

    Raises:
        TypeError, ValueError: for a class that is invalid, empty or too long by itself, with its
            number; for a `max_classes` below 1.
    """
    if max_classes is not None and max_classes < 1:
        raise ValueError(f"classes of a prompt: expected 1 or more, got {max_classes}")
    named = [as_class(given, number) for number, given in enumerate(classes)]
    texts, labels = [each.text for each in named], class_labels(named)
    prompts = []
    start = 0
    while start < len(named):
        last = len(named)
        if max_classes is not None:
            last = min(last, (start // max_classes + 1) * max_classes)
        end = longest_fit(texts, start, last, tokenizer, max_tokens)
        if end == start:
            raise ValueError(
                f"class {start} ({texts[start][:60]!r}) has"
                f" {len(tokenizer.encode(texts[start])[0])} tokens alone; expected at most"
                f" {max_tokens}"
            )
        prompts.append(_class_prompt(named[start:end], labels[start:end], start))
        start = end
    return prompts


def longest_fit(
    texts: Sequence[str], start: int, last: int, tokenizer: Encoder, max_tokens: int
) -> int:
    """Return the end of the longest prefix of texts[start:last] that fits, by bisection."""
    # A text has at least one token.
    low, high = start, min(last, start + max_tokens)
    while low < high:
        middle = (low + high + 1) // 2
        if len(tokenizer.encode(SEPARATOR.join(texts[start:middle]))[0]) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    return low


def caption_prompt(caption: str, phrases: Sequence[str]) -> Prompt:
    """Find phrases in a caption, in order.

    Each phrase is searched after the previous one, then anywhere; as whole words first, then as any
    substring; case-insensitively.

    Args:
        caption: "A red mug next to the laptop."
        phrases: ["a red mug", "the laptop"].

    Raises:
        ValueError: for a phrase that is empty or does not occur, by name.
    """
    spans, start = [], 0
    for number, phrase in enumerate(phrases):
        wanted = phrase.strip()
        if not wanted:
            raise ValueError(f"phrase {number} is empty; expected words")
        span = _find(caption, wanted, start) or _find(caption, wanted, 0)
        if span is None:
            raise ValueError(f"phrase {number} ({wanted!r}) does not occur in {caption!r}")
        spans.append((span,))
        start = span[1]
    return Prompt(caption, tuple(phrase.strip() for phrase in phrases), tuple(spans))


def _find(caption: str, phrase: str, start: int) -> CharSpan | None:
    """Find a phrase from `start`, whole words before substrings."""
    escaped = re.escape(phrase)
    for pattern in (rf"(?<!\w){escaped}(?!\w)", escaped):
        match = re.compile(pattern, re.IGNORECASE).search(caption, start)
        if match:
            return match.span()
    return None


def _class_prompt(classes: Sequence[ClassName], labels: Sequence[str], first: int) -> Prompt:
    parts = [(each.prefix, clean_class_name(each.name), each.suffix) for each in classes]
    return _joined(labels, parts, first)


def _joined(labels: Sequence[str], parts: Sequence[tuple[str, str, str]], first: int) -> Prompt:
    """Join (prefix, name, suffix); the spans are those of the names."""
    spans, position = [], 0
    for prefix, name, suffix in parts:
        start = position + len(prefix)
        spans.append(((start, start + len(name)),))
        position = start + len(name) + len(suffix) + len(SEPARATOR)
    text = SEPARATOR.join("".join(part) for part in parts)
    return Prompt(text, tuple(labels), tuple(spans), first)


def read_classes(path: AnyPath) -> list[ClassName]:
    """Read a list of classes.

    Args:
        path: a text file with one name per line (blank lines are ignored), or a .json file with a
            list of names or of objects with `name` and optionally `prefix` and `suffix` (published:
            CAPTION_PROMPT of an ODinW data set).

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is invalid or empty, with its name and the entry.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        try:
            # Editors on Windows write a byte order mark.
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as problem:
            raise ValueError(
                f"{path} is not text ({problem}); expected one class per line"
            ) from None
        found = [ClassName(line.strip()) for line in lines if line.strip()]
        if not found:
            raise ValueError(f"{path} is empty; expected one class per line")
        return found
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        what = "an empty list" if entries == [] else f"a {type(entries).__name__}"
        raise ValueError(
            f"{path} holds {what}; expected a list of class names or of objects with 'name',"
            " 'prefix' and 'suffix'"
        )
    try:
        return [as_class(entry, number) for number, entry in enumerate(entries)]
    except (TypeError, ValueError) as problem:
        raise ValueError(f"{path}: {problem}") from None
