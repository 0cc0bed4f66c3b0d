"""Texts for the detector, and which characters of them name which label.

A prompt is one caption in which every label (a class, a phrase) has a place: "mug. traffic light".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from fiber.atomic_io import read_json
from fiber.data.char_spans import CharSpan

#: Published separator of labels; none follows the last.
SEPARATOR = ". "


class Encoder(Protocol):
    """What `class_prompts` needs of a tokenizer."""

    def encode(self, text: str, /) -> tuple[list[int], Any]:
        """Give ids, <s> and </s> included, and something more."""
        ...


@dataclass(frozen=True)
class ClassName:
    """A class and the words around its name: "puffin" in "puffin with orange beaks".

    The model reads all of it, and the name alone says how a box scores.

    Raises:
        TypeError: if a part is no str.
    """

    name: str
    #: Stands before the name as it is; a space between the two belongs to it.
    prefix: str = ""
    #: Stands behind the name as it is.
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
        """What a prompt says for the class."""
        return f"{self.prefix}{clean_class_name(self.name)}{self.suffix}"


#: A class as a user names it: a mapping has the fields of `ClassName`.
ClassLike = str | ClassName | Mapping[str, str]


@dataclass(frozen=True)
class Prompt:
    """A caption with the places of its labels."""

    text: str
    #: What each label is called in answers.
    labels: tuple[str, ...]
    #: For each label, the half-open spans of code points of `text` that name it.
    spans: tuple[tuple[CharSpan, ...], ...]
    #: Place of the first label in the list that the user gave; above 0 where it was split.
    first_label: int = 0

    def token_map(self, offsets: Sequence[CharSpan]) -> list[list[int]]:
        """Find the tokens of each label.

        Args:
            offsets: for each token of the text its half-open span of code points; empty for
                special tokens.

        Returns:
            For each label the indices of the tokens that share a character with its spans; an
            empty list where the text was cut before the label.
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
    """Write a class name as the published prompts do.

    What stands in parentheses is dropped, underscores become spaces, pairs of spaces one; a space
    before a parenthesis stays: "hot_dog" -> "hot dog", "bow_(ribbon)" -> "bow ".
    """
    return re.sub(r"\(.*\)", "", name).replace("_", " ").replace("  ", " ")


def as_class(given: Any, number: int) -> ClassName:
    """Turn what a user named into a class.

    Args:
        given: a name, a `ClassName`, or a mapping such as {"prefix": "", "name": "puffin",
            "suffix": " with orange beaks"}, where "name" alone is needed.
        number: place in the user's list, for messages.

    Raises:
        TypeError: if it is none of these.
        ValueError: if a mapping has other keys or no name, or if nothing is left of the name.
    """
    if isinstance(given, str):
        found = ClassName(given)
    elif isinstance(given, ClassName):
        found = given
    elif isinstance(given, Mapping):
        known = [part.name for part in fields(ClassName)]
        if "name" not in given or not set(given) <= set(known):
            raise ValueError(
                f"class {number} has the keys {', '.join(map(repr, given)) or 'of nothing'};"
                f" expected 'name', and 'prefix' and 'suffix' if it has them"
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
    """Join classes, their names cleaned by `clean_class_name`: "mug. traffic light".

    Raises:
        TypeError, ValueError: for one that is no class, or of whose name nothing is left, by its
            number.
    """
    named = [as_class(given, number) for number, given in enumerate(classes)]
    return _class_prompt(named, class_labels(named), 0)


def class_labels(classes: Sequence[ClassName]) -> list[str]:
    """Give each class what it is called in answers: its name, where no other class has it.

    Classes of one name are told apart by the words around it: "red star" and "wooden star".
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
    """Join classes into prompts that fit the text tower, in order.

    Args:
        classes: any number of them.
        tokenizer: that of the model.
        max_tokens: longest text in tokens, <s> and </s> included.
        max_classes: classes go into blocks of so many (published: 40 for LVIS), each a prompt of
            its own, or several where it does not fit. None: as few prompts as hold them.

    Returns:
        Prompts whose `first_label` counts through `classes`.

    Raises:
        TypeError, ValueError: for one that is no class or empty, or that does not fit alone, by
            its number; for a `max_classes` below 1.
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
    """End of the longest run of texts[start:last] that fits when joined, by bisection."""
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

    Each phrase is looked for behind the one before it, then anywhere: as whole words first, then
    as any characters; capitals do not matter.

    Args:
        caption: "A red mug next to the laptop."
        phrases: ["a red mug", "the laptop"].

    Raises:
        ValueError: for a phrase that is empty or does not occur, which it names.
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
    """First place of a phrase from `start` on, whole words before parts of words."""
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
    """Join (prefix, name, suffix), the spans those of the names."""
    spans, position = [], 0
    for prefix, name, suffix in parts:
        start = position + len(prefix)
        spans.append(((start, start + len(name)),))
        position = start + len(name) + len(suffix) + len(SEPARATOR)
    text = SEPARATOR.join("".join(part) for part in parts)
    return Prompt(text, tuple(labels), tuple(spans), first)


def read_classes(path: str | PathLike[str]) -> list[ClassName]:
    """Read the classes of a file.

    Args:
        path: a text file with one name a line, empty lines left out; or, where its name ends in
            ".json", a list of names or of objects with `name`, `prefix` and `suffix`, the last two
            only if a class has them (published: CAPTION_PROMPT of an ODinW data set).

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is nothing of the kind or lists nothing, with its name and the entry.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        try:
            # With or without a byte-order mark, which editors on Windows write.
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as problem:
            raise ValueError(f"{path} is not text ({problem}); expected one class a line") from None
        found = [ClassName(line.strip()) for line in lines if line.strip()]
        if not found:
            raise ValueError(f"{path}: expected one class a line, found none")
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
