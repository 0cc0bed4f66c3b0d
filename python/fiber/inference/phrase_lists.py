"""Recognize a text that lists several phrases, but is given as one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from fiber.inference.noun_phrases import noun_phrases
from fiber.messages import caller_level, printable, shown

#: Matches separators that no phrase contains: semicolons, bars, bullets, line breaks and tabs, the
#: Chinese "\u3001", and full stops of scripts whose phrases `noun_phrases` does not find.
_NEVER_IN_A_PHRASE = re.compile(
    "\r\n|[;\uff1b\u061b|\uff5c\u2022\n\r\t\v\f\x1c-\x1e\x85\u2028\u2029\u3001\uff64"
    "\u3002\uff0e\uff61\u0964\u06d4\u1362\u17d4\u104b\u0589]"
)
#: Matches a period that ends a part, as in the prompts of Grounding DINO: "a cat. the dog."
_PERIOD = re.compile(r"\.(?:\s|$)")
_PERIOD_BEFORE_A_WORD = re.compile(r"\.\s*")
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
_COMMA = re.compile(r"[,\uff0c\u060c]\s*(?:and\s|or\s)?")
_SLASH = re.compile("[/\uff0f]")
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
#: Matches a phrase in quotation marks, and the whole of several.
_QUOTED = re.compile(
    r"""(?:"[^"]+"|'[^']+'|\u201c[^\u201d]+\u201d|\u2018[^\u2019]+\u2019|\xab[^\xbb]+\xbb"""
    r"""|\u300c[^\u300d]+\u300d)"""
)
_SEVERAL_QUOTED = re.compile(
    rf"\(?{_QUOTED.pattern}(?:(?:[\s,\uff0c\u060c]|\band\b|\bor\b)*{_QUOTED.pattern})+,?\)?"
)
#: Matches the name of a text file.
_FILE = re.compile(r"[^\s;,]+\.(?:txt|json|jsonl|csv|names|ya?ml)", re.IGNORECASE)
#: Number, and number of characters, of the examples in a warning.
_MAX_EXAMPLES, _MAX_LENGTH = 3, 60


def find_separator(phrase: str) -> tuple[str, list[str]] | None:
    """Return the separator and the parts of a text that looks like a list of phrases, or None.

    Semicolons, line breaks, tabs, "|", the Chinese "\u3001" and full stops of other scripts always
    separate, and so do quotation marks around every part. Periods do between noun phrases, as in
    the prompts of Grounding DINO. Commas, slashes and periods without a space do between phrases
    that all have an article or a number, and between things of one kind with adjectives, of which
    an object cannot be two; commas and slashes do between single words.

    >>> find_separator("a circle, the square and the star")
    (',', ['a circle', 'the square', 'the star'])
    >>> find_separator("a red, round circle")
    >>> find_separator("red circle, blue square")
    (',', ['red circle', 'blue square'])
    >>> find_separator("a cat. a dog.")
    ('.', ['a cat', 'a dog'])
    """
    if len(parts := _parts(_NEVER_IN_A_PHRASE.split(phrase))) > 1:
        # After the first part, since a separator may come before it, too.
        found = _NEVER_IN_A_PHRASE.search(phrase, phrase.index(parts[0]) + len(parts[0]))
        assert found is not None
        return found[0], _unquoted(parts)
    phrase = " ".join(phrase.split())
    if _SEVERAL_QUOTED.fullmatch(phrase):
        quoted = _QUOTED.findall(phrase)
        comma = _COMMA.search(_QUOTED.sub("", phrase))
        return comma[0][0] if comma else quoted[0][0], _unquoted(quoted)
    for pattern in (_PERIOD_BEFORE_A_WORD, _PERIOD):
        parts = _parts(pattern.split(phrase))
        if len(parts) < 2 or any(map(_is_cut, parts[:-1])):
            continue
        if pattern is _PERIOD:
            are_several = all(map(_is_noun_phrase, parts))
        else:
            are_several = all(map(_DETERMINER.match, parts)) or _are_of_one_kind(parts)
        if are_several and not any(map(_SAME_OBJECT.fullmatch, parts)):
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
        if _FILE.fullmatch(text):
            warnings.warn(
                f"{shown(text)} is taken as one {what}, although it looks like the name of a file;"
                " pass its lines, as in Path(name).read_text().splitlines()",
                UserWarning,
                stacklevel=caller_level(),
            )
            return
        found = find_separator(text)
        # Some names of classes have a slash, such as "cabinet/shelf".
        found = None if found is not None and _SLASH.match(found[0]) and what == "class" else found
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


def _unquoted(parts: Sequence[str]) -> list[str]:
    """Remove quotation marks if they are around every part."""
    if not all(map(_QUOTED.fullmatch, parts)):
        return list(parts)
    return _parts([part[1:-1] for part in parts])


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
