"""Noun phrases by spaCy, where it and one of its English pipelines are installed.

`pip install 'fiber-vl[phrases]'` brings spaCy itself. Its pipelines are not on PyPI under spaCy's
name; `python -m spacy download en_core_web_sm` gets one from spaCy's own releases. Any installed
pipeline for English with a parser will do. Nothing is downloaded here.
"""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

from fiber.data.char_spans import CharSpan

#: Pipelines of spaCy's own, the most accurate first; others come behind them, by name.
PIPELINES = ("en_core_web_trf", "en_core_web_lg", "en_core_web_md", "en_core_web_sm")
#: Parts of a pipeline that noun phrases do not need.
_UNUSED = ("ner", "lemmatizer")
#: Places in a picture or beside a thing, which are no things: "the left" of "to the left of".
_PLACE = re.compile(
    r"(?:(?:the|its|his|her|their)\s+)?"
    r"(?:left|right|front|back|top|bottom|middle|cent(?:er|re)|side|foreground|background)",
    re.IGNORECASE,
)


class Parser(NamedTuple):
    """A pipeline and what it is called in messages."""

    name: str
    pipeline: Any

    def noun_phrases(self, caption: str) -> list[CharSpan]:
        """Find the phrases of a caption that may name something; pronouns and places are none.

        Returns:
            Half-open spans of code points, in order.
        """
        spans = []
        for chunk in self.pipeline(caption).noun_chunks:
            is_pronoun = all(token.pos_ == "PRON" for token in chunk)
            if not is_pronoun and not _PLACE.fullmatch(chunk.text.strip()):
                spans.append((chunk.start_char, chunk.end_char))
        return spans


@functools.cache
def english_parser() -> Parser | None:
    """Load the best English pipeline that is installed; None without spaCy or without one."""
    try:
        import spacy  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    installed = {name for name in spacy.util.get_installed_models() if name.startswith("en_")}
    known = [name for name in PIPELINES if name in installed]
    for name in known + sorted(installed - set(known)):
        pipeline = spacy.load(name, exclude=list(_UNUSED))
        if "parser" in pipeline.pipe_names:
            return Parser(f"spaCy's {name}", pipeline)
    return None
