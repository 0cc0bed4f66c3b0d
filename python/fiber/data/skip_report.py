"""Summaries of skipped and modified samples, and warnings that point at the user's code."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections import Counter
from pathlib import Path

from fiber.data.prompts.absent import AbsentPhrases
from fiber.data.prompts.sampling import SampledPrompts
from fiber.data.record import ConcatRecords, MixedRecords, RecordSet

_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
_NOUN = re.compile(r"\b\w+s\b")
_SINGULARS = {"boxes": "box", "classes": "class", "hypotheses": "hypothesis", "passes": "pass"}


def skip_lines(records: RecordSet, *, while_reading: bool = False) -> list[str]:
    """Return the readers' notes and lines such as "3 empty captions were skipped or changed".

    If `while_reading`, include only record sets that count entries while their records are read;
    otherwise, include only the others.
    """
    parts = [
        part
        for part in _parts(records)
        if getattr(part, "counts_while_reading", False) == while_reading
    ]
    return [note for part in parts for note in getattr(part, "notes", ())] + [
        f"{counted(count, what)} {'was' if count == 1 else 'were'} skipped or changed"
        for what, count in skip_counts(ConcatRecords(parts)).items()
    ]


def skip_counts(records: RecordSet) -> dict[str, int]:
    """Count the entries that readers skipped or changed, as in {"empty captions": 3}."""
    counts: Counter[str] = Counter()
    for part in _parts(records):
        counts.update(getattr(part, "counts", {}))
    return dict(counts)


def classes_of(records: RecordSet) -> tuple[str, ...]:
    """Return the distinct class names of box annotations."""
    found = (name for part in _parts(records) for name in getattr(part, "classes", ()))
    return tuple(dict.fromkeys(found))


def _parts(records: RecordSet) -> list[RecordSet]:
    """Return the record sets, as created by readers, that make up `records`; each once."""
    if isinstance(records, SampledPrompts | AbsentPhrases):
        return _parts(records.records)
    if isinstance(records, MixedRecords):
        records = ConcatRecords([records.new, records.old])
    if not isinstance(records, ConcatRecords):
        return [records]
    parts = [part for each in records.parts for part in _parts(each)]
    return list({id(part): part for part in parts}.values())


def counted(count: int, what: str) -> str:
    """Format a count and its noun, making the noun singular for 1.

    The noun is the first word of the plural `what` that ends in "s": for 1 and "boxes that are
    cut", the result is "1 box that is cut".
    """
    if count == 1:
        what = _NOUN.sub(lambda noun: _SINGULARS.get(noun[0], noun[0][:-1]), what, count=1)
        what = what.replace(" that are ", " that is ", 1)
    return f"{count} {what}"


def warn_user(message: str) -> None:
    """Issue a RuntimeWarning at the innermost stack frame outside this package.

    If all frames are inside the package (`python -m fiber`), use the outermost one.
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
