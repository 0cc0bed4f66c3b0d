"""Recognize a text that lists several phrases, but is given as one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from fiber.inference.noun_phrases import noun_phrases
from fiber.messages import caller_level, printable, shown

#: Separators that no phrase contains, as on the command line and in lists of other programs.
_NEVER_IN_A_PHRASE = (";", "\n", "|")
#: Matches a period that ends a part, as in the prompts of Grounding DINO: "a cat. the dog."
_PERIOD = re.compile(r"\.(?:\s|$)")
#: Words before a period that is part of an abbreviation.
_ABBREVIATION = re.compile(
    r"\w|[\w.]*\.\w|mr|mrs|ms|dr|st|no|nr|jr|sr|vs|mt|ft|approx|etc", re.IGNORECASE
)
#: Matches the start of a noun phrase.
_DETERMINER = re.compile(
    r"(?:a|an|the|some|another|every|each|all|one|two|three|four|five|six|seven|eight|nine|ten"
    r"|my|his|her|its|their)\s",
    re.IGNORECASE,
)
#: Matches a comma with a conjunction, and a conjunction before a noun phrase.
_COMMA = re.compile(r",\s*(?:and\s|or\s)?")
_CONJUNCTION = re.compile(rf"\s+(?:and|or)\s+(?={_DETERMINER.pattern})", re.IGNORECASE)
#: Matches a part that says more about the object before it: "the cup, the left one", "the cup, the
#: second from the left", "the cup, the top right corner".
_SAME_OBJECT = re.compile(
    r".*\b(?:ones?|who|which|that|(?:first|second|third|fourth|fifth|last)\s(?:from|in|on))\b.*"
    r"|(?:the\s+)?(?:(?:far|very|upper|lower|left|right|front|back|top|bottom|middle|cent(?:er|re)"
    r"|side|corner|edge|half|foreground|background)\s*)+",
    re.IGNORECASE,
)
#: Matches a list as Python and JSON write it, in one string.
_LITERAL = re.compile(r"\[.+\]", re.DOTALL)
#: Number, and number of characters, of the examples in a warning.
_MAX_EXAMPLES, _MAX_LENGTH = 3, 60


def find_separator(phrase: str) -> tuple[str, list[str]] | None:
    """Return the separator and the parts of a text that looks like a list of phrases, or None.

    Semicolons, line breaks and "|" always separate. Periods do between noun phrases, as in the
    prompts of Grounding DINO. Commas do between phrases that all have an article or a number, and
    between single words.

    >>> find_separator("a circle, the square and the star")
    (',', ['a circle', 'the square', 'the star'])
    >>> find_separator("a red, round circle")
    >>> find_separator("a cat. a dog.")
    ('.', ['a cat', 'a dog'])
    """
    for separator in _NEVER_IN_A_PHRASE:
        parts = _parts(phrase.split(separator))
        if len(parts) > 1:
            return separator, parts
    phrase = " ".join(phrase.split())
    parts = _parts(_PERIOD.split(phrase))
    if len(parts) > 1 and all(map(_is_noun_phrase, parts)) and not any(map(_is_cut, parts[:-1])):
        return ".", parts
    if _LITERAL.fullmatch(phrase):
        return ",", [part.strip("\"'") for part in _parts(phrase[1:-1].split(","))]
    parts = _parts(_COMMA.split(phrase))
    is_list = len(parts) > 1 and all(map(_DETERMINER.match, parts))
    is_list = is_list or (len(parts) > 1 and all(part.isalpha() for part in parts))
    if not is_list or any(map(_SAME_OBJECT.fullmatch, parts)):
        return None
    return ",", [part for each in parts for part in _CONJUNCTION.split(each)]


def warn_of_lists(texts: Sequence[object], what: str) -> None:
    """Warn of the first of the phrases (or classes, as `what` says) that looks like a list."""
    for text in texts:
        if not isinstance(text, str):
            continue
        found = find_separator(text)
        # No name of a class has a comma.
        if found is None and what == "class" and len(parts := _parts(_COMMA.split(text))) > 1:
            found = ",", parts
        if found is None:
            continue
        separator, parts = found
        more = ["..."] if len(parts) > _MAX_EXAMPLES else []
        some = [printable(part, _MAX_LENGTH) for part in parts[:_MAX_EXAMPLES]]
        warnings.warn(
            f"{shown(text)} is taken as one {what}, although {separator!r} seems to separate"
            f" {len(parts)}; for several, pass a list, [{', '.join([*map(shown, some), *more])}],"
            f' or on the command line "{"; ".join([*some, *more])}"',
            UserWarning,
            stacklevel=caller_level(),
        )
        return


def _parts(texts: Sequence[str]) -> list[str]:
    return [text.strip() for text in texts if text.strip()]


def _is_noun_phrase(text: str) -> bool:
    """Check that a text starts with a noun, which "he holds a ball" and "on the left" do not."""
    return [start for start, _ in noun_phrases(text)][:1] == [0]


def _is_cut(part: str) -> bool:
    """Check that the period after a part is that of an abbreviation."""
    return _ABBREVIATION.fullmatch(part.split()[-1]) is not None
