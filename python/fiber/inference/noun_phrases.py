"""Noun phrases of captions: with spaCy, or else by splitting at joining words."""

from __future__ import annotations

import functools
import re
import warnings

from fiber.data.char_spans import CharSpan
from fiber.inference.parser import english_parser

#: Multi-word joints with words that may occur in a phrase.
_JOINING_GROUPS = (
    "to the left of",
    "to the right of",
    "on the left of",
    "on the right of",
    "left of",
    "right of",
    "in front of",
    "on top of",
    "at the top of",
    "at the bottom of",
    "in the middle of",
    "next to",
    "close to",
    "because of",
    "out of",
)
#: Words that end a phrase: prepositions, then conjunctions, pronouns and adverbs, then verbs that
#: are frequent in captions.
_JOINING_WORDS = """
about above across after against along among around as at before behind below beneath beside
between beyond by down for from in inside into near of off on onto outside over past through to
toward towards under underneath until up upon with within without
and but both he her here his i it its nor not or our she so than that their them then there they
this what when where which while who whose you your
am are be been being can carries carrying contains eating eats has have having holding holds is
lies looking looks lying playing plays riding rides runs running show showing shown shows sits
sitting sleeping stands standing was walking walks wearing wears were
"""
_JOINT = re.compile(
    r"(?<!\w)(?:"
    + "|".join(
        re.escape(w) for w in sorted((*_JOINING_GROUPS, *_JOINING_WORDS.split()), key=len)[::-1]
    )
    + r")(?!\w)|[^\w\s'\u2019-]+",
    re.IGNORECASE,
)
#: Words that are not a phrase on their own.
_EMPTY = re.compile(r"(?:a|an|the|some|one|each|every|no|left|right|other|another)", re.IGNORECASE)
#: A single participle, such as the rest of "is parked", is not a phrase.
_PARTICIPLE = re.compile(r"\w{3,}ed|seen|lit|made|full", re.IGNORECASE)


def caption_phrases(caption: str) -> list[CharSpan]:
    """Find the noun phrases of a caption.

    Uses spaCy if an English pipeline is installed, see `fiber.inference.parser`. Otherwise warns
    once and uses `noun_phrases`, which takes "a dog catches a frisbee" for one phrase.

    Returns:
        Half-open character spans, in order.
    """
    parser = english_parser()
    if parser is not None:
        return parser.noun_phrases(caption)
    _warn_rule_based()
    return noun_phrases(caption)


@functools.cache
def _warn_rule_based() -> None:
    """Warn once per process that there is no parser."""
    warnings.warn(
        "the phrases of captions are found by a rule of thumb, since spaCy with an English pipeline"
        " is not installed (fiber-vl[phrases], then python -m spacy download en_core_web_sm);"
        " phrases or spans that are given need neither",
        UserWarning,
        # The caller of `Model.ground`.
        stacklevel=6,
    )


def noun_phrases(caption: str) -> list[CharSpan]:
    """Find the noun phrases of a caption by a heuristic.

    It knows only verbs that are frequent in captions: it works for English captions of everyday
    scenes, not for free prose.

    Returns:
        Half-open character spans, in order.

    >>> caption = "A man in a red shirt is riding a horse to the left of two small dogs."
    >>> [caption[start:end] for start, end in noun_phrases(caption)]
    ['A man', 'a red shirt', 'a horse', 'two small dogs']
    """
    spans = []
    start = 0
    for joint in (*_JOINT.finditer(caption), None):
        end = joint.start() if joint else len(caption)
        piece = caption[start:end]
        words = piece.split()
        if any(not _EMPTY.fullmatch(word) for word in words) and not _PARTICIPLE.fullmatch(
            piece.strip()
        ):
            first = start + len(piece) - len(piece.lstrip())
            spans.append((first, first + len(piece.strip())))
        start = joint.end() if joint else end
    return spans
