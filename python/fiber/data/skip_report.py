"""What readers left out of records or changed, and what else they have to say, in words."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections import Counter
from pathlib import Path

from fiber.data.prompts.sampling import DrawnPrompts
from fiber.data.record import ConcatRecords, RecordSet

_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
_NOUN = re.compile(r"\b\w+s\b")
_SINGULARS = {"boxes": "box", "classes": "class", "passes": "pass"}


def left_out_lines(records: RecordSet, *, while_reading: bool = False) -> list[str]:
    """Say what was left out, a line for each kind: "3 empty captions were left out ...".

    What else readers noted comes before.

    Args:
        records: of any readers.
        while_reading: what is counted as records are read one by one, in place of the rest.
    """
    parts = [
        part
        for part in _parts(records)
        if getattr(part, "counts_while_reading", False) == while_reading
    ]
    return [note for part in parts for note in getattr(part, "notes", ())] + [
        f"{counted(count, what)} {'was' if count == 1 else 'were'} left out or changed"
        for what, count in left_out(ConcatRecords(parts)).items()
    ]


def classes_of(records: RecordSet) -> tuple[str, ...]:
    """Return the names of the classes that files of boxes list, each once; () if there are none."""
    found = (name for part in _parts(records) for name in getattr(part, "classes", ()))
    return tuple(dict.fromkeys(found))


def _parts(records: RecordSet) -> list[RecordSet]:
    """List what records were joined of, as their readers gave them."""
    if isinstance(records, DrawnPrompts):
        return _parts(records.records)
    if not isinstance(records, ConcatRecords):
        return [records]
    return [part for each in records.parts for part in _parts(each)]


def counted(count: int, what: str) -> str:
    """Put a number before what is counted: 1, "pictures that are missing" -> "1 picture that is
    missing".

    Args:
        count: how many.
        what: they are: a plural, whose first word that ends in "s" is the noun.
    """
    if count == 1:
        what = _NOUN.sub(lambda noun: _SINGULARS.get(noun[0], noun[0][:-1]), what, count=1)
        what = what.replace(" that are ", " that is ", 1)
    return f"{count} {what}"


def left_out(records: RecordSet) -> dict[str, int]:
    """Count what readers left out of some records, or changed: {"empty captions": 3}."""
    counts: Counter[str] = Counter()
    for part in _parts(records):
        counts.update(getattr(part, "counts", {}))
    return dict(counts)


def warn_user(message: str) -> None:
    """Give a RuntimeWarning at the innermost line outside this package.

    Where all is inside (`python -m fiber`), the outermost one counts.
    """
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        RuntimeWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )
