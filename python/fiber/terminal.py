"""Output streams that write control characters as escapes.

What a command prints has names, labels, captions and answers from files, and a control character
in them could move the cursor, set the title or fill the clipboard of a terminal. Commands run with
the streams of `escaping`, so that no `print` has to think of it.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

#: Matches C0 and C1 controls except line feeds, line and paragraph separators, marks and controls
#: of the direction of text, and lone surrogates, which streams cannot encode. Joiners stay, since
#: emoji and scripts have them.
_CONTROL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]"
)


def escape_controls(text: str) -> str:
    r"""Escape control characters except line feeds, as JSON does.

    A JSON text has them only in strings, so that its value stays the same.

    >>> print(escape_controls("\x1b[2Jmug"))
    \u001b[2Jmug
    """
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class EscapingStream:
    """Text stream that escapes control characters; otherwise as the stream that it writes to."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text with escaped control characters; return its length."""
        self.stream.write(escape_controls(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        """Return False, so that libraries write no colors, which would become escapes."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def escaping() -> Iterator[None]:
    """Escape control characters on standard output and standard error."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, EscapingStream(stream)) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def is_terminal(stream: TextIO) -> bool:
    """Check whether a stream, or the one below it, is a terminal."""
    return unescaped(stream).isatty()


def unescaped(stream: TextIO) -> TextIO:
    """Return the stream below, for progress bars, which move the cursor."""
    return stream.stream if isinstance(stream, EscapingStream) else stream
