"""Text for messages, bounded in length and time and free of control characters.

The `repr` of a value from a file can be a gigabyte long, or never end: a pickle of 200 bytes holds
a tuple that contains another one twice, on 60 levels. `repr(value)[:60]` is no bound, since it cuts
the whole text. Messages show values from files with these functions instead.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Collection, Iterable, Mapping

#: Maximum number of characters of a string, and of a value.
_MAX_STRING, _MAX_VALUE = 60, 240
#: Maximum number of items of a container, and of containers in each other, that are shown.
_MAX_ITEMS, _MAX_DEPTH = 8, 2
#: Integers of more bits are described by their number of digits.
_MAX_BITS = 128
#: Maximum number of names in a list of names.
_MAX_NAMES = 12


def shown(value: object) -> str:
    """Describe a value from a file: as `repr` does if it is short, else its start and its size.

    Strings are quoted and escaped. Objects other than numbers, strings, bytes, paths and
    containers are shown by the name of their type.
    """
    return _cut(_shown(value, 0), _MAX_VALUE)


def shown_names(names: Collection[object], most: int = _MAX_NAMES) -> str:
    """Join names from a file for a message, without quotes: the first ones, and how many follow."""
    first = [printable(_name(name), _MAX_STRING) for name in itertools.islice(names, most)]
    more = len(names) - len(first)
    return (", ".join(first) or "none") + (f" and {more:,} more" if more > 0 else "")


def printable(text: str, most: int) -> str:
    """Cut a text to `most` characters and escape those that are not printable.

    Control characters could move the cursor, set the title or fill the clipboard of a terminal.
    """
    cut = _cut(text, most)
    if cut.isprintable():
        return cut
    return "".join(each if each.isprintable() else _escaped(each) for each in cut)


def caller_level() -> int:
    """Return the `stacklevel` of a warning that names the first caller outside of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("fiber."):
        frame, level = frame.f_back, level + 1
    return level


def _shown(value: object, depth: int) -> str:
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int):
        bits = value.bit_length()
        # Converting an integer to decimal digits takes quadratic time.
        digits = int(bits * math.log10(2)) + 1
        return repr(value) if bits <= _MAX_BITS else f"<int of about {digits:,} digits>"
    if isinstance(value, (str, bytes, bytearray)):
        return _quoted(value)
    if isinstance(value, os.PathLike):
        return _quoted(str(value))
    if isinstance(value, Mapping):
        pairs = itertools.islice(value.items(), _MAX_ITEMS)
        items = (f"{_shown(key, depth + 1)}: {_shown(each, depth + 1)}" for key, each in pairs)
        return _joined("{", items, "}", value, depth)
    if isinstance(value, (list, tuple, set, frozenset)):
        items = (_shown(each, depth + 1) for each in itertools.islice(value, _MAX_ITEMS))
        start, end = "{}"
        if isinstance(value, (list, tuple)):
            start, end = "[]" if isinstance(value, list) else "()"
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return _joined(start, items, comma + end, value, depth)
    return f"<{type(value).__name__}>"


def _joined(
    start: str, items: Iterable[str], end: str, value: Collection[object], depth: int
) -> str:
    """Join the first items of a container, or count them if it is deep in others."""
    if depth >= _MAX_DEPTH and len(value) > 0:
        return f"<{type(value).__name__} of {len(value):,}>"
    more = f", ... {len(value):,} in all" if len(value) > _MAX_ITEMS else ""
    return start + ", ".join(items) + more + end


def _quoted(text: str | bytes | bytearray) -> str:
    if len(text) <= _MAX_STRING:
        return repr(text)
    kind = "characters" if isinstance(text, str) else "bytes"
    return f"{text[:_MAX_STRING]!r}... ({len(text):,} {kind})"


def _name(value: object) -> str:
    return value if isinstance(value, str) else _shown(value, _MAX_DEPTH)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _escaped(character: str) -> str:
    # As repr does: \n, \x1b, \u202e.
    return repr(character)[1:-1]
