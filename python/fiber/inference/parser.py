"""Find noun phrases with spaCy, if it is installed with an English pipeline.

`pip install 'fiber-vl[phrases]'` installs spaCy, `python -m spacy download en_core_web_sm` a
pipeline. Any installed English pipeline with a parser works. Nothing is downloaded here.
"""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

from fiber.data.char_spans import CharSpan

#: Preferred spaCy pipelines, most accurate first.
PIPELINES = ("en_core_web_trf", "en_core_web_lg", "en_core_web_md", "en_core_web_sm")
#: Components that noun phrases do not need.
_UNUSED = ("ner", "lemmatizer")
#: Places rather than objects, such as "the left" in "to the left of".
_PLACE = re.compile(
    r"(?:(?:the|its|his|her|their)\s+)?"
    r"(?:left|right|front|back|top|bottom|middle|cent(?:er|re)|side|foreground|background)",
    re.IGNORECASE,
)


class Parser(NamedTuple):
    """spaCy pipeline and its name in messages."""

    name: str
    pipeline: Any

    def noun_phrases(self, caption: str) -> list[CharSpan]:
        """Find a caption's noun phrases, without pronouns and places: half-open character spans."""
        spans = []
        for chunk in self.pipeline(caption).noun_chunks:
            is_pronoun = all(token.pos_ == "PRON" for token in chunk)
            if not is_pronoun and not _PLACE.fullmatch(chunk.text.strip()):
                spans.append((chunk.start_char, chunk.end_char))
        return spans


@functools.cache
def english_parser() -> Parser | None:
    """Load the best installed English pipeline; None if there is none."""
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
