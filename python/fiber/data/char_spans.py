"""Spans of code points that hold whole characters, as readers see them.

A reader's character may be several code points: a letter and its accents, an emoji and its skin
colour, emoji joined into one, the two letters of a flag, the parts of a Hangul syllable. Scripts
that join letters by a virama are not looked into.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

#: Half-open range [start, end) of code points in a text.
CharSpan = tuple[int, int]

_JOINER = "\u200d"
#: Not marks to Unicode, but never the first of a character: zero-width non-joiner and joiner.
_CONTINUING = {"\u200c", _JOINER}


def splits_character(text: str, place: int) -> bool:
    """Whether the code points before and behind a place belong to one character."""
    if not 0 < place < len(text):
        return False
    before, behind = text[place - 1], text[place]
    if before.isascii() and behind.isascii():
        return before == "\r" and behind == "\n"
    return (
        behind in _CONTINUING
        or unicodedata.category(behind) in ("Mn", "Mc", "Me")
        or "\U0001f3fb" <= behind <= "\U0001f3ff"  # colours of skin
        or "\U000e0020" <= behind <= "\U000e007f"  # letters of a flag of a region
        or (before == _JOINER and unicodedata.category(behind) == "So")
        or (_is_flag_letter(behind) and _flag_letters_before(text, place) % 2 == 1)
        or _in_syllable(before, behind)
    )


def whole_characters(text: str, span: CharSpan) -> CharSpan:
    """Widen a span to whole characters; one that lies outside the text stays as it is."""
    start, end = span
    while splits_character(text, start):
        start -= 1
    while splits_character(text, end):
        end += 1
    return start, end


def check_span(text: str, given: Any, number: int) -> CharSpan:
    """Check a span that a user gave.

    Args:
        text: the caption that it is a part of.
        given: half-open, in code points.
        number: its place in the user's list, for messages.

    Raises:
        TypeError: if it is no pair of whole numbers.
        ValueError: if it lies outside the text, is empty or inverted, holds nothing but spaces, or
            begins or ends inside a character; it names span and caption.
    """
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2:
        raise TypeError(f"span {number} is {given!r:.60}; expected a pair (start, end)")
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in given):
        raise TypeError(f"span {number} is {given!r:.60}; expected two whole numbers (start, end)")
    start, end = given
    of = f"span {number}, [{start}, {end}), of the caption {text[:60]!r}"
    if not 0 <= start < end <= len(text):
        raise ValueError(
            f"{of}: expected 0 <= start < end <= {len(text)}, the caption's length in code points"
        )
    if not text[start:end].strip():
        raise ValueError(f"{of} holds spaces alone; expected words")
    for name, place in (("begins", start), ("ends", end)):
        if splits_character(text, place):
            whole = whole_characters(text, (start, end))
            raise ValueError(
                f"{of} {name} inside a character of several code points; expected"
                f" [{whole[0]}, {whole[1]}), {text[slice(*whole)]!r:.60}, or fewer whole characters"
            )
    return start, end


def _is_flag_letter(letter: str) -> bool:
    return "\U0001f1e6" <= letter <= "\U0001f1ff"


def _flag_letters_before(text: str, place: int) -> int:
    """How many letters of flags stand before a place, one behind the other."""
    count = 0
    while count < place and _is_flag_letter(text[place - 1 - count]):
        count += 1
    return count


def _in_syllable(before: str, behind: str) -> bool:
    """Whether two parts of a Hangul syllable follow one another: L L, L V, V V, V T, T T."""
    first, second = _hangul(before), _hangul(behind)
    return (first, second) in {
        ("L", "L"),
        ("L", "V"),
        ("L", "LV"),
        ("L", "LVT"),
        ("LV", "V"),
        ("LV", "T"),
        ("V", "V"),
        ("V", "T"),
        ("LVT", "T"),
        ("T", "T"),
    }


def _hangul(letter: str) -> str:
    """Which part of a syllable a letter is: leading, vowel or trailing jamo, or a syllable."""
    if "\u1100" <= letter <= "\u115f" or "\ua960" <= letter <= "\ua97c":
        return "L"
    if "\u1160" <= letter <= "\u11a7" or "\ud7b0" <= letter <= "\ud7c6":
        return "V"
    if "\u11a8" <= letter <= "\u11ff" or "\ud7cb" <= letter <= "\ud7fb":
        return "T"
    if "\uac00" <= letter <= "\ud7a3":
        # 28 syllables share their first two parts; the first of them has no third.
        return "LV" if (ord(letter) - 0xAC00) % 28 == 0 else "LVT"
    return ""
