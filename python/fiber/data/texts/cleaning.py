"""Clean texts before they are tokenized, as the published code of some models does.

CLIP's tokenizer cleans texts with ftfy before it normalizes, which files of the tokenizer leave
out. This is ftfy without its guesses at wrongly decoded texts: HTML entities, ligatures,
full-width and half-width characters, curly quotes, control characters and escape sequences of
terminals. Spans of tokens refer to the text as given.

Source: `fix_text` of ftfy (Speer 2019), as CLIP (Radford et al. 2021) calls it.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

#: An HTML entity with its semicolon.
_ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")
#: Escape sequence of a terminal.
_ESCAPE = re.compile("\x1b\\[[0-9;]*[a-zA-Z]")
#: Maximum number of times that an entity may give another one, as "&amp;lt;" does.
_MAX_NESTED = 8
#: Curly single and double quotes.
_QUOTES = {
    **dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
}
#: Latin ligatures and digraphs of one character.
_LIGATURES = {
    chr(code): unicodedata.normalize("NFKC", chr(code)).replace("\u02bc", "'")
    for codes in (range(0xFB00, 0xFB07), (0x132, 0x133, 0x149), range(0x1C4, 0x1CD))
    for code in (*codes, *range(0x1F1, 0x1F4))
} | {"\ufb05": "\u017ft"}
#: Full-width and half-width characters, and the ideographic space.
_WIDTHS = {
    chr(code): unicodedata.normalize("NFKC", chr(code))
    for code in (0x3000, *range(0xFF01, 0xFFF0))
    if unicodedata.normalize("NFKC", chr(code)) != chr(code)
}
#: Control characters without a meaning in a text.
_CONTROLS = {
    chr(code): ""
    for codes in (
        *(range(0x09), (0x0B, 0x7F, 0xFEFF), range(0x0E, 0x20)),
        *(range(0x206A, 0x2070), range(0xFFF9, 0xFFFD)),
    )
    for code in codes
}
#: Controls that are characters of Windows-1252 in a text that was read as Latin-1.
_WINDOWS = {
    chr(code): bytes([code]).decode("cp1252", "ignore") or chr(code) for code in range(0x80, 0xA0)
}
_CHARACTERS = {**_QUOTES, **_LIGATURES, **_WIDTHS, **_CONTROLS, **_WINDOWS}


class CleanText(NamedTuple):
    """A cleaned text, and where its characters come from."""

    text: str
    #: Half-open span in the text as given of each character.
    spans: tuple[tuple[int, int], ...]

    def original_span(self, span: tuple[int, int]) -> tuple[int, int]:
        """Return the span of the text as given that a span of the cleaned text comes from."""
        first, end = span
        if first >= end:
            return (0, 0)
        return self.spans[first][0], self.spans[end - 1][1]


def clean_text(text: str) -> CleanText:
    """Clean a text as published; see the module.

    Entities are kept from the line with the first "<" on, which may be HTML.
    """
    characters = [(each, (place, place + 1)) for place, each in enumerate(text)]
    first = text.find("<")
    limit = len(text) if first < 0 else text.rfind("\n", 0, first) + 1
    characters, rest = characters[:limit], characters[limit:]
    for _ in range(_MAX_NESTED):
        joined = "".join(each for each, _ in characters)
        if not _ENTITY.search(joined):
            break
        characters = _unescaped(joined, [span for _, span in characters])
    characters += rest
    escapes = [match.span() for match in _ESCAPE.finditer("".join(each for each, _ in characters))]
    for first, end in reversed(escapes):
        del characters[first:end]
    cleaned = [
        (each, span)
        for character, span in characters
        for each in _CHARACTERS.get(character, character)
    ]
    return CleanText("".join(each for each, _ in cleaned), tuple(span for _, span in cleaned))


def _unescaped(text: str, spans: list[tuple[int, int]]) -> list[tuple[str, tuple[int, int]]]:
    """Replace the entities of a text once."""
    found: list[tuple[str, tuple[int, int]]] = []
    end = 0
    for match in _ENTITY.finditer(text):
        first, last = match.span()
        found += zip(text[end:first], spans[end:first], strict=True)
        whole = (spans[first][0], spans[last - 1][1])
        found += ((each, whole) for each in _character(match[0]))
        end = last
    return found + list(zip(text[end:], spans[end:], strict=True))


def _character(entity: str) -> str:
    """Return what an entity stands for; as in ftfy, names in capitals are of capital letters."""
    character = html.unescape(entity)
    if character == entity and entity.isupper():
        character = html.unescape(entity.lower())
        return entity if character == entity.lower() else character.upper()
    return character


#: Functions that clean texts, by the name that configs and files have.
CLEANERS: dict[str, Callable[[str], CleanText]] = {"clip": clean_text}
