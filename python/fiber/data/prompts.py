"""Texts for the detector, and which characters of them name which label.

A prompt is one caption in which every label (a class, a phrase) has a place: "mug. traffic light".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fiber.data.records import CharSpan

#: Published separator of labels; none follows the last.
SEPARATOR = ". "


class Encoder(Protocol):
    """What `class_prompts` needs of a tokenizer."""

    def encode(self, text: str, /) -> tuple[list[int], Any]:
        """Give ids, <s> and </s> included, and something more."""
        ...


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


def phrase_prompt(phrases: Sequence[str]) -> Prompt:
    """Join phrases: ["a red mug", "the laptop"] -> "a red mug. the laptop".

    Raises:
        ValueError: for an empty phrase, by its number.
    """
    return _joined(phrases, [phrase.strip() for phrase in phrases], "phrase", 0)


def class_prompt(names: Sequence[str]) -> Prompt:
    """Join class names, cleaned by `clean_class_name`: "mug. traffic light".

    Raises:
        ValueError: for a name of which nothing is left, by its number.
    """
    return _joined(names, [clean_class_name(name) for name in names], "class", 0)


def class_prompts(names: Sequence[str], tokenizer: Encoder, max_tokens: int) -> list[Prompt]:
    """Join class names into as few prompts as fit the text tower, in order.

    Args:
        names: any number of classes.
        tokenizer: that of the model.
        max_tokens: longest text in tokens, <s> and </s> included.

    Returns:
        Prompts whose `first_label` counts through `names`.

    Raises:
        ValueError: for a name that is empty or does not fit alone, by its number.
    """
    cleaned = [clean_class_name(name) for name in names]
    prompts = []
    start = 0
    while start < len(names):
        end = _longest_fit(cleaned, start, tokenizer, max_tokens)
        if end == start:
            raise ValueError(
                f"class {start} ({names[start][:60]!r}) has"
                f" {len(tokenizer.encode(cleaned[start])[0])} tokens alone; expected at most"
                f" {max_tokens}"
            )
        prompts.append(_joined(names[start:end], cleaned[start:end], "class", start))
        start = end
    return prompts


def _longest_fit(cleaned: Sequence[str], start: int, tokenizer: Encoder, max_tokens: int) -> int:
    """End of the longest run of names from `start` whose joined text fits, by bisection."""
    low, high = start, len(cleaned)
    while low < high:
        middle = (low + high + 1) // 2
        if len(tokenizer.encode(SEPARATOR.join(cleaned[start:middle]))[0]) <= max_tokens:
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


def _joined(labels: Sequence[str], texts: Sequence[str], what: str, first: int) -> Prompt:
    spans, position = [], 0
    for number, text in enumerate(texts, first):
        if not text.strip():
            raise ValueError(
                f"{what} {number} ({labels[number - first]!r}) is empty; expected words"
            )
        spans.append(((position, position + len(text)),))
        position += len(text) + len(SEPARATOR)
    return Prompt(SEPARATOR.join(texts), tuple(labels), tuple(spans), first)
