"""Spans of code points that contain whole characters (grapheme clusters).

A character may have several code points: a letter and its accents, an emoji and its skin tone, a
ZWJ sequence, the two regional indicator symbols of a flag, or the parts of a Hangul syllable.
Scripts that join letters by a virama are not handled.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from fiber.messages import shown

#: Half-open range [start, end) of code points in a text.
CharSpan = tuple[int, int]

# For each Hangul syllable type, the types that may follow it within a syllable.
_NEXT_IN_SYLLABLE = {
    "L": ("L", "V", "LV", "LVT"),
    **dict.fromkeys(("LV", "V"), ("V", "T")),
    **dict.fromkeys(("LVT", "T"), ("T",)),
}
_FLAG_LETTERS = "".join(map(chr, range(0x1F1E6, 0x1F200)))
_JOINER = "\u200d"
#: Maximum number of code points by which either end of a span is moved, and of regional indicators
#: that are counted: a text may have any number of accents on one letter.
_MAX_CODE_POINTS = 256
#: Zero-width non-joiner and joiner: not marks in Unicode, but they never start a character.
_CONTINUING = {"\u200c", _JOINER}


def splits_character(text: str, position: int) -> bool:
    """Return True if the code points before and after a position belong to the same character."""
    if not 0 < position < len(text):
        return False
    before, after = text[position - 1], text[position]
    if before.isascii() and after.isascii():
        return before == "\r" and after == "\n"
    return (
        after in _CONTINUING
        or unicodedata.category(after) in ("Mn", "Mc", "Me")
        or "\U0001f3fb" <= after <= "\U0001f3ff"  # skin tones
        or "\U000e0020" <= after <= "\U000e007f"  # tags of regional flags
        or (before == _JOINER and unicodedata.category(after) == "So")
        or (after in _FLAG_LETTERS and _flag_letters_before(text, position) % 2 == 1)
        or _hangul(after) in _NEXT_IN_SYLLABLE.get(_hangul(before), ())
    )


def whole_characters(text: str, span: CharSpan) -> CharSpan:
    """Widen a span to whole characters, by 256 code points at each end at most.

    A span outside the text is unchanged.
    """
    start, end = span
    for _ in range(_MAX_CODE_POINTS):
        if not splits_character(text, start):
            break
        start -= 1
    for _ in range(_MAX_CODE_POINTS):
        if not splits_character(text, end):
            break
        end += 1
    return start, end


def check_span(text: str, given: Any, number: int) -> CharSpan:
    """Check a user's span, a half-open range of code points in the caption `text`.

    `number` is the index of the span, for error messages.

    Raises:
        TypeError: if the span is not a pair of integers.
        ValueError: if the span is out of bounds, empty or reversed, contains only spaces, or splits
            a character.
    """
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2:
        raise TypeError(
            f"span {number} is {shown(given)}; expected a pair of integers (start, end)"
        )
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in given):
        raise TypeError(
            f"span {number} is {shown(given)}; expected a pair of integers (start, end)"
        )
    start, end = given
    of = f"span {number}, [{shown(start)}, {shown(end)}), of the caption {shown(text)}"
    if not 0 <= start < end <= len(text):
        raise ValueError(
            f"{of}: expected 0 <= start < end <= {len(text)}, the caption's length in code points"
        )
    if not text[start:end].strip():
        raise ValueError(f"{of} contains only spaces; expected words")
    for name, position in (("begins", start), ("ends", end)):
        if splits_character(text, position):
            whole = whole_characters(text, (start, end))
            raise ValueError(
                f"{of} {name} inside a multi-code-point character; expected whole characters,"
                f" such as [{whole[0]}, {whole[1]}), {shown(text[slice(*whole)])}"
            )
    return start, end


def _flag_letters_before(text: str, position: int) -> int:
    """Count the consecutive regional indicator symbols before a position."""
    before = text[max(0, position - _MAX_CODE_POINTS) : position]
    return len(before) - len(before.rstrip(_FLAG_LETTERS))


def _hangul(letter: str) -> str:
    """Return the Hangul syllable type of a letter ("" if it is not Hangul)."""
    if "\u1100" <= letter <= "\u115f" or "\ua960" <= letter <= "\ua97c":
        return "L"
    if "\u1160" <= letter <= "\u11a7" or "\ud7b0" <= letter <= "\ud7c6":
        return "V"
    if "\u11a8" <= letter <= "\u11ff" or "\ud7cb" <= letter <= "\ud7fb":
        return "T"
    if "\uac00" <= letter <= "\ud7a3":
        # The first syllable in each block of 28 has no trailing consonant.
        return "LV" if (ord(letter) - 0xAC00) % 28 == 0 else "LVT"
    return ""
