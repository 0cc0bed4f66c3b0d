"""Detector prompts, and the spans of their labels.

A prompt is one caption that names every label (a class or a phrase): "mug. traffic light".
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from fiber.atomic_io import check_regular_file, read_json
from fiber.data.char_spans import CharSpan
from fiber.data.formats.json_values import surrogate_problem
from fiber.data.record import AnyPath, SharedSpans
from fiber.messages import shown

#: Maximum number of keys of a class in a message.
_MOST_KEYS = 8
#: Separator between labels, as in the published code.
SEPARATOR = ". "


class Encoder(Protocol):
    """Tokenizer interface required for creating prompts."""

    def encode(self, text: str, /) -> tuple[list[int], Any]:
        """Return the token ids, including <s> and </s>, and an unused second value."""
        ...


@dataclass(frozen=True)
class ClassName:
    """A class name with context, such as "puffin" in "puffin with orange beaks".

    The model reads the whole text; only the tokens of the name determine the score of a box.

    Raises:
        TypeError: if a field is not a string.
    """

    name: str
    #: Text before the name, including any space between them.
    prefix: str = ""
    #: Text after the name, including any space between them.
    suffix: str = ""

    def __post_init__(self) -> None:
        for part, value in vars(self).items():
            if not isinstance(value, str):
                raise TypeError(
                    f"class {shown(self.name)}: {part} must be a str, got {type(value).__name__}"
                    f" {shown(value)}"
                )

    @property
    def text(self) -> str:
        """Text of this class in a prompt."""
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
        """Return the indices of the tokens that overlap the spans of each label.

        `offsets` gives the half-open span of code points of each token, which is empty for special
        tokens. A label has no tokens if the text was truncated before it.
        """
        return [
            [
                token
                for token, (first, last) in enumerate(offsets)
                if any(max(first, start) < min(last, end) for start, end in spans)
            ]
            for spans in self.spans
        ]

    def record_fields(
        self, boxes_xyxy: Iterable[tuple[float, float, float, float]], labels: Sequence[int]
    ) -> dict[str, Any]:
        """Return `Record` fields for this prompt, given boxes and their label indices."""
        return {
            "text": self.text,
            "boxes_xyxy": tuple(boxes_xyxy),
            "char_spans": tuple(self.spans[label] for label in labels),
            "box_labels": tuple(labels),
            "labels": self.labels,
            "label_spans": self.spans,
        }


def clean_class_name(name: str) -> str:
    """Format a class name as in the published prompts.

    Drop text in parentheses, replace underscores with spaces, and replace double spaces with single
    spaces. A space before a parenthesis is kept: "hot_dog" -> "hot dog", "bow_(ribbon)" -> "bow ".
    """
    kept = "\n".join(map(_without_parentheses, name.split("\n")))
    return kept.replace("_", " ").replace("  ", " ")


def _without_parentheses(line: str) -> str:
    """Drop what is between the first opening and the last closing parenthesis, and these."""
    # A regular expression takes quadratic time for many parentheses that are not closed.
    start, end = line.find("("), line.rfind(")")
    return line[:start] + line[end + 1 :] if 0 <= start < end else line


def as_class(given: Any, number: int) -> ClassName:
    """Convert a name, or a mapping of the fields of a `ClassName`, to a `ClassName`.

    A `ClassName` is returned as is. `number` is the index of the class, for error messages.

    Raises:
        TypeError: if the type is unsupported.
        ValueError: if a mapping has unknown keys or no name, or the name is empty.
    """
    found = ClassName(given) if isinstance(given, str) else given
    if isinstance(given, Mapping):
        if "name" not in given or not set(given) <= {part.name for part in fields(ClassName)}:
            have = ", ".join(shown(key) for key in islice(given, _MOST_KEYS)) or "(none)"
            raise ValueError(
                f"class {number} has keys {have}; expected 'name' and optionally 'prefix' and"
                " 'suffix'"
            )
        found = ClassName(**given)
    if not isinstance(found, ClassName):
        raise TypeError(
            f"class {number}: expected a str, a ClassName or a mapping with 'prefix', 'name' and"
            f" 'suffix', got {type(given).__name__} {shown(given)}"
        )
    if not clean_class_name(found.name).strip():
        raise ValueError(f"class {number} has an empty name ({shown(found.name)})")
    return found


def class_prompt(classes: Sequence[ClassLike]) -> Prompt:
    """Join classes, with names cleaned by `clean_class_name`, as in "mug. traffic light".

    Raises:
        TypeError, ValueError: if a class is invalid or its name is empty; the error gives its
            index.
    """
    named = [as_class(given, number) for number, given in enumerate(classes)]
    return join_classes(named, _result_names(named))


def _result_names(classes: Sequence[ClassName]) -> list[str]:
    """Return the result name of each class, with prefix and suffix if the name is not unique."""
    times = Counter(each.name for each in classes)
    return [
        each.name if times[each.name] == 1 else f"{each.prefix}{each.name}{each.suffix}".strip()
        for each in classes
    ]


def join_classes(classes: Sequence[ClassName], labels: Iterable[str], first: int = 0) -> Prompt:
    """Join validated classes; `first` is the index of the first class in the user's list."""
    spans, texts, position = [], list[str](), 0
    for each in classes:
        name = clean_class_name(each.name)
        start = position + len(each.prefix)
        spans.append(((start, start + len(name)),))
        texts.append(f"{each.prefix}{name}{each.suffix}")
        position += len(texts[-1]) + len(SEPARATOR)
    return Prompt(SEPARATOR.join(texts), tuple(labels), SharedSpans(spans), first)


def class_prompts(
    classes: Sequence[ClassLike],
    tokenizer: Encoder,
    max_tokens: int,
    *,
    max_classes: int | None = None,
) -> list[Prompt]:
    """Join classes, in order, into as few prompts of at most `max_tokens` tokens as possible.

    Args:
        classes: any number of classes.
        tokenizer: the model's tokenizer.
        max_tokens: maximum text length in tokens, including <s> and </s>.
        max_classes: first split the classes into blocks of this size (40 in the published LVIS
            evaluation).

    Returns:
        Prompts whose `first_label` is an index into `classes`.

    Raises:
        TypeError, ValueError: if a class is invalid, empty or too long by itself (the error gives
            its index), or `max_classes` is below 1.
    """
    if max_classes is not None and max_classes < 1:
        raise ValueError(f"classes per prompt must be 1 or more, got {max_classes}")
    named = [as_class(given, number) for number, given in enumerate(classes)]
    texts, labels = [each.text for each in named], _result_names(named)

    def tokens(start: int, end: int) -> int:
        return len(tokenizer.encode(SEPARATOR.join(texts[start:end]))[0])

    prompts: list[Prompt] = []
    start = 0
    while start < len(named):
        last = len(named)
        if max_classes is not None:
            last = min(last, (start // max_classes + 1) * max_classes)
        # A text has at least one token.
        ends = range(start + 1, min(last, start + max_tokens) + 1)
        end = start + bisect_left(ends, True, key=lambda e: tokens(start, e) > max_tokens)
        if end == start:
            raise ValueError(
                f"class {start} ({shown(texts[start])}) alone must have at most {max_tokens}"
                f" tokens, got {tokens(start, start + 1)}"
            )
        prompts.append(join_classes(named[start:end], labels[start:end], start))
        start = end
    return prompts


def caption_prompt(caption: str, phrases: Sequence[str]) -> Prompt:
    """Create a prompt from a caption by finding phrases in it. Case is ignored.

    Each phrase is searched for after the previous one and, if it does not occur there, in the whole
    caption. Both searches prefer whole words to substrings.

    Raises:
        ValueError: if a phrase is empty or does not occur in the caption; the error names it.
    """
    spans, labels, position = [], [phrase.strip() for phrase in phrases], 0
    for number, label in enumerate(labels):
        if not label:
            raise ValueError(f"phrase {number} is empty; expected words")
        escaped = re.escape(label)
        searches = (
            re.compile(pattern, re.IGNORECASE).search(caption, start)
            for start in (position, 0)
            for pattern in (rf"(?<!\w){escaped}(?!\w)", escaped)
        )
        match = next(filter(None, searches), None)
        if match is None:
            raise ValueError(
                f"phrase {number} ({shown(label)}) does not occur in the caption {shown(caption)};"
                " pass a part of the caption, or phrases without a caption"
            )
        spans.append((match.span(),))
        position = match.end()
    return Prompt(caption, tuple(labels), tuple(spans))


def read_classes(path: AnyPath) -> list[ClassName]:
    """Read a list of classes from a text file with one name per line, or from a .json file.

    Blank lines are ignored. A .json file contains a list of names or of objects with `name` and
    optionally `prefix` and `suffix` (like the published CAPTION_PROMPT of an ODinW dataset).

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is invalid or empty; the error names the file and the entry.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        check_regular_file(path)
        try:
            # Editors on Windows write a byte order mark.
            lines = map(str.strip, path.read_text(encoding="utf-8-sig").splitlines())
        except UnicodeDecodeError as problem:
            raise ValueError(
                f"{path} is not UTF-8 text ({problem}); expected one class per line"
            ) from None
        found = [ClassName(line) for line in lines if line]
        if not found:
            raise ValueError(f"{path} is empty; expected one class per line")
        return found
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        what = "an empty list" if entries == [] else f"a {type(entries).__name__}"
        raise ValueError(f"{path} contains {what}; expected a list of class names or objects")
    if (problem := surrogate_problem(entries)) is not None:
        raise ValueError(f"{path} {problem}")
    try:
        return [as_class(entry, number) for number, entry in enumerate(entries)]
    except (TypeError, ValueError) as problem:
        raise ValueError(f"{path}: {problem}") from None
