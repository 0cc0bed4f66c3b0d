"""Recognize a text that lists several phrases, but is given as one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from fiber.inference.noun_phrases import noun_phrases
from fiber.messages import caller_level, printable, shown

#: Separators that no phrase contains, as on the command line and in lists of other programs.
_NEVER_IN_A_PHRASE = (";", "\uff1b", "\n", "|", "\u3001")
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
_COMMA = re.compile(r"[,\uff0c]\s*(?:and\s|or\s)?")
_SLASH = re.compile("/")
_ANY_CONJUNCTION = re.compile(r"\s+(?:and|or)\s+")
_CONJUNCTION = re.compile(rf"\s+(?:and|or)\s+(?={_DETERMINER.pattern})", re.IGNORECASE)
#: Matches a part that says more about the object before it: "the cup, the left one", "the cup, the
#: second from the left", "the cup, the top right corner".
_SAME_OBJECT = re.compile(
    r".*\b(?:ones?|who|which|that|(?:first|second|third|fourth|fifth|last)\s(?:from|in|on))\b.*"
    r"|(?:the\s+)?(?:(?:far|very|upper|lower|left|right|front|back|top|bottom|middle|cent(?:er|re)"
    r"|side|corner|edge|half|foreground|background)\s*)+",
    re.IGNORECASE,
)
#: Adjectives of parts that have no article, such as "red circle".
_ADJECTIVE_WORDS = """
    black blue brown gold golden gray green grey orange pink purple red silver tan white yellow
    blond blonde bright dark light striped spotted
    big huge large little long short small tall tiny old new young round
    glass metal plastic wooden
"""
_ADJECTIVES = frozenset(_ADJECTIVE_WORDS.split())
#: Nouns of which an object can be only one of a group: "red circle, blue square" are two. Clothes
#: and parts of the body are in none, since "blue shirt, red hat" is one person.
_GROUPS = tuple(
    frozenset(group.split())
    for group in (
        "circle cross cube diamond ellipse heart hexagon oval pentagon rectangle ring square star"
        " triangle ball cone cylinder sphere",
        "bear bird cat cow deer dog duck elephant giraffe goat horse lion monkey pig rabbit sheep"
        " tiger zebra",
        "airplane bicycle bike boat bus car motorcycle plane scooter ship train truck van",
        "apple banana cake carrot donut lemon orange pear pizza sandwich tomato",
        "bottle bowl cup fork glass knife mug pan plate pot spoon vase",
        "armchair bed bench chair couch desk lamp sofa stool table",
        "camera computer keyboard laptop monitor mouse phone printer remote television tv",
    )
)
#: Matches a single word that says what an object does or how it is: "man, sitting".
_STATE = re.compile(
    r"(?!(?:build|ceil|cloth|earr|k|paint|rail|r|str|sw|w)ing$)\w+ing", re.IGNORECASE
)
#: Matches a list as Python and JSON write it, in one string.
_LITERAL = re.compile(r"\[.+\]", re.DOTALL)
#: Number, and number of characters, of the examples in a warning.
_MAX_EXAMPLES, _MAX_LENGTH = 3, 60


def find_separator(phrase: str) -> tuple[str, list[str]] | None:
    """Return the separator and the parts of a text that looks like a list of phrases, or None.

    Semicolons, line breaks, "|" and the Chinese "\u3001" always separate. Periods do between noun
    phrases, as in the prompts of Grounding DINO. Commas and slashes do between phrases that all
    have an article or a number, between single words, and between things of one kind with
    adjectives, of which an object cannot be two.

    >>> find_separator("a circle, the square and the star")
    (',', ['a circle', 'the square', 'the star'])
    >>> find_separator("a red, round circle")
    >>> find_separator("red circle, blue square")
    (',', ['red circle', 'blue square'])
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
    for pattern in (_COMMA, _SLASH):
        parts = _parts(pattern.split(phrase))
        if len(parts) < 2 or any(map(_SAME_OBJECT.fullmatch, parts)):
            continue
        separator = pattern.search(phrase)
        assert separator is not None
        things = [part for each in parts for part in _ANY_CONJUNCTION.split(each)]
        if _are_of_one_kind(things):
            return separator[0][0], things
        if all(map(_DETERMINER.match, parts)) or _are_single_words(parts, pattern is _SLASH):
            return separator[0][0], [part for each in parts for part in _CONJUNCTION.split(each)]
    return None


def warn_of_lists(texts: Sequence[object], what: str) -> None:
    """Warn of the first of the phrases (or classes, as `what` says) that looks like a list."""
    for text in texts:
        if not isinstance(text, str):
            continue
        found = find_separator(text)
        # Some names of classes have a slash, such as "cabinet/shelf".
        found = None if found is not None and found[0] == "/" and what == "class" else found
        # A single class with a comma is rather a list than a name.
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


def _are_single_words(parts: Sequence[str], with_slash: bool) -> bool:
    """Check that parts are words such as "cat"; abbreviations have a slash, as in "w/ hat"."""
    return all(
        part.isalpha()
        and part.lower() not in _ADJECTIVES
        and not _STATE.fullmatch(part)
        and not (with_slash and len(part) < 3)
        for part in parts
    )


def _are_of_one_kind(parts: Sequence[str]) -> bool:
    """Check that parts are nouns of a group, or one noun, with adjectives and maybe an article."""
    nouns = []
    for part in parts:
        *adjectives, noun = _DETERMINER.sub("", f"{part.lower()} ", count=1).split() or [""]
        if not _ADJECTIVES.issuperset(adjectives):
            return False
        nouns.append((noun, noun.removesuffix("s"), noun.removesuffix("es")))
    if any(all(not group.isdisjoint(forms) for forms in nouns) for group in _GROUPS):
        return True
    # "red mug, blue mug", but not "a red, red mug".
    is_repeated = len(set(nouns)) == 1 and nouns[0][0] not in {*_ADJECTIVES, ""}
    return is_repeated and len({part.lower() for part in parts}) == len(parts)


def _is_noun_phrase(text: str) -> bool:
    """Check that a text starts with a noun, which "he holds a ball" and "on the left" do not."""
    return [start for start, _ in noun_phrases(text)][:1] == [0]


def _is_cut(part: str) -> bool:
    """Check that the period after a part is that of an abbreviation."""
    return _ABBREVIATION.fullmatch(part.split()[-1]) is not None
