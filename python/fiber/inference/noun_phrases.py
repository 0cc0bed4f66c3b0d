"""Find noun phrases in captions, with spaCy or by splitting at function words and verbs.

Install spaCy with `pip install 'fiber-vl[phrases]'` and a pipeline with `python -m spacy download
en_core_web_sm`. Any installed English pipeline with a parser works. Nothing is downloaded here.
"""

from __future__ import annotations

import functools
import re
import warnings
from typing import Any

from fiber.data.char_spans import CharSpan
from fiber.messages import caller_level

#: Preferred spaCy pipelines, most accurate first.
PIPELINES = ("en_core_web_trf", "en_core_web_lg", "en_core_web_md", "en_core_web_sm")
#: Pipeline components that are not needed for noun phrases.
_UNUSED = ("ner", "lemmatizer")
#: Matches places rather than objects, such as "the left" in "to the left of".
_PLACE = re.compile(
    r"(?:(?:the|its|his|her|their)\s+)?"
    r"(?:left|right|front|back|top|bottom|middle|cent(?:er|re)|side|foreground|background)",
    re.IGNORECASE,
)


@functools.cache
def english_parser() -> Any:
    """Load the best installed English spaCy pipeline with a parser, or return None."""
    try:
        import spacy  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    installed = {name for name in spacy.util.get_installed_models() if name.startswith("en_")}
    known = [name for name in PIPELINES if name in installed]
    for name in known + sorted(installed - set(known)):
        pipeline = spacy.load(name, exclude=list(_UNUSED))
        if "parser" in pipeline.pipe_names:
            return pipeline
    return None


#: Multi-word separators, whose words may also occur in phrases.
_SEPARATOR_PHRASES = """
to the left of, to the right of, on the left of, on the right of, left of, right of, in front of,
on top of, at the top of, at the bottom of, in the middle of, next to, close to, because of, out of
"""
#: Words that end a phrase: prepositions; conjunctions, pronouns and adverbs; frequent verbs.
_SEPARATOR_WORDS = """
about above across after against along among around as at before behind below beneath beside
between beyond by down for from in inside into near of off on onto outside over past through to
toward towards under underneath until up upon with within without
and but both he her here his i it its nor not or our she so than that their them then there they
this what when where which while who whose you your
am are be been being can carries carrying contains eating eats has have having holding holds is
lies looking looks lying playing plays riding rides runs running show showing shown shows sits
sitting sleeping stands standing was walking walks wearing wears were
"""
_SEPARATORS = (
    *(" ".join(phrase.split()) for phrase in _SEPARATOR_PHRASES.split(",")),
    *_SEPARATOR_WORDS.split(),
)
#: Longest alternative first.
_SEPARATOR = re.compile(
    rf"(?<!\w)(?:{'|'.join(sorted(_SEPARATORS, key=len)[::-1])})(?!\w)|[^\w\s'\u2019-]+",
    re.IGNORECASE,
)
#: Words that are not a phrase on their own.
_DETERMINER = re.compile(
    r"(?:a|an|the|some|one|each|every|no|left|right|other|another)", re.IGNORECASE
)
#: A single participle, such as "parked" in "is parked", is not a phrase.
_PARTICIPLE = re.compile(r"\w{3,}ed|seen|lit|made|full", re.IGNORECASE)


def caption_phrases(caption: str) -> list[CharSpan]:
    """Find the noun phrases in a caption as half-open character spans, in order.

    Uses spaCy, excluding pronouns and places, if an English pipeline is installed. Otherwise warns
    once and uses `noun_phrases`, which mistakes "a dog catches a frisbee" for one phrase.
    """
    pipeline = english_parser()
    if pipeline is None:
        _warn_heuristic()
        return noun_phrases(caption)
    spans = []
    for chunk in pipeline(caption).noun_chunks:
        is_pronoun = all(token.pos_ == "PRON" for token in chunk)
        if not is_pronoun and not _PLACE.fullmatch(chunk.text.strip()):
            spans.append((chunk.start_char, chunk.end_char))
    return spans


@functools.cache
def _warn_heuristic() -> None:
    warnings.warn(
        "no English spaCy pipeline is installed, so noun phrases in captions are found with a"
        " heuristic. Install a pipeline with `pip install 'fiber-vl[phrases]'` and `python -m spacy"
        " download en_core_web_sm`, or pass phrases or spans",
        UserWarning,
        stacklevel=caller_level(),
    )


def noun_phrases(caption: str) -> list[CharSpan]:
    """Find noun phrases with a heuristic, as half-open character spans, in order.

    The heuristic recognizes only verbs that are frequent in captions. It works for English captions
    of everyday scenes, but not for general prose.

    >>> caption = "A man in a red shirt is riding a horse to the left of two small dogs."
    >>> [caption[start:end] for start, end in noun_phrases(caption)]
    ['A man', 'a red shirt', 'a horse', 'two small dogs']
    """
    spans, start = [], 0
    for separator in (*_SEPARATOR.finditer(caption), None):
        end = separator.start() if separator else len(caption)
        piece, phrase = caption[start:end], caption[start:end].strip()
        is_named = any(not _DETERMINER.fullmatch(word) for word in phrase.split())
        if is_named and not _PARTICIPLE.fullmatch(phrase):
            first = start + len(piece) - len(piece.lstrip())
            spans.append((first, first + len(phrase)))
        start = separator.end() if separator else end
    return spans
