"""What a reader may do with a file: read it, or refuse it with a fit message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

#: Length in characters of the longest message, besides the path of the file.
MAX_MESSAGE = 10_000
#: Documented errors.
ALLOWED = ("read", "ValueError", "OSError")


def verdict(read: Callable[[Path], object], path: Path) -> str:
    """Read a file, or the files of a folder; return `ALLOWED` words or what is wrong."""
    try:
        read(path)
    except (ValueError, OSError) as error:
        kind = "ValueError" if isinstance(error, ValueError) else "OSError"
        return complaint(str(error), path) or kind
    except Exception as error:
        return type(error).__name__
    return "read"


def complaint(message: str, path: Path) -> str:
    """Say what is wrong with a message about a file, or the files of a folder; "" if nothing is."""
    if str(path) not in message:
        return "a message without the file"
    if len(message) > MAX_MESSAGE + 8 * len(str(path)):
        return f"a message of {len(message):,} characters"
    if not message.replace("\n", "").isprintable():
        return "a message with control characters"
    return ""
