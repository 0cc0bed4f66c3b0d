"""Output streams that write control characters as escapes.

What a command prints has names, labels, captions and answers from files, and a control character
in them could move the cursor, set the title or fill the clipboard of a terminal. Commands run with
the streams of `escaping`, so that no `print` has to think of it.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from fiber.atomic_io import full_disk_advice

#: Name of the standard output in errors.
STDOUT = "standard output"

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
    """Text stream that escapes control characters; otherwise as the stream that it writes to.

    An error of the system is raised with the name of the stream, such as "standard output".
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self.stream, self.name = stream, name

    def write(self, text: str) -> int:
        """Write a text with escaped control characters; return its length."""
        with explain_output_errors(self.stream, self.name):
            self.stream.write(escape_controls(text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with explain_output_errors(self.stream, self.name):
            self.stream.flush()

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
def explain_output_errors(stream: TextIO, name: str) -> Iterator[None]:
    """Re-raise an OSError of a write to a stream with its name, and what to do if a disk is full.

    That of a pipe that nobody reads stays as it is.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        file = _file_below(stream)
        where = name if file is None else f"{name}, the file {file},"
        advice = full_disk_advice(error, Path() if file is None else file)
        if file is None:
            # The free space is that of another disk.
            advice = advice and "; free some space and run the command again"
        message = f"{where} could not be written ({error.strerror}){advice}"
        raise OSError(error.errno, message) from error


def _file_below(stream: TextIO) -> Path | None:
    """Return the regular file that a stream writes to, if any; known on Linux."""
    try:
        path = Path(f"/proc/self/fd/{stream.fileno()}").readlink()
        return path if path.is_file() else None
    except (OSError, ValueError):
        # Also for a stream without a descriptor.
        return None


@contextlib.contextmanager
def escaping() -> Iterator[None]:
    """Escape control characters on standard output and standard error."""
    streams = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, EscapingStream(streams[0], STDOUT))
    sys.stderr = cast(TextIO, EscapingStream(streams[1], "standard error"))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


@contextlib.contextmanager
def without_log_lines() -> Iterator[None]:
    """Drop warnings and lines of logs below errors, for the import of a library that writes some.

    They are about other libraries and for their developers, and would be before an answer.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def is_terminal(stream: TextIO) -> bool:
    """Check whether a stream, or the one below it, is a terminal."""
    return unescaped(stream).isatty()


def unescaped(stream: TextIO) -> TextIO:
    """Return the stream below, for progress bars, which move the cursor."""
    return stream.stream if isinstance(stream, EscapingStream) else stream
