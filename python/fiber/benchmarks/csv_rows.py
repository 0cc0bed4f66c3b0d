"""Write benchmark rows to CSV files, for `fiber bench` and benches/."""

from __future__ import annotations

import csv
import datetime
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def today() -> str:
    """Return today's date in UTC, as YYYY-MM-DD."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def p20_p80(values: Sequence[float]) -> tuple[float, float]:
    """Return the 20th and 80th percentiles. A single value is returned as both."""
    if len(values) < 2:
        return values[0], values[0]
    found = statistics.quantiles(values, n=5, method="inclusive")
    return found[0], found[-1]


def spread_columns(values: Sequence[float]) -> dict[str, str]:
    """Return the columns median, p20, p80 and rounds."""
    low, high = p20_p80(values)
    return {
        "median": f"{statistics.median(values):.4g}",
        "p20": f"{low:.4g}",
        "p80": f"{high:.4g}",
        "rounds": str(len(values)),
    }


def check_columns(file: Path, columns: Sequence[str]) -> None:
    """Check that rows can be appended to a file, which may not exist yet.

    Raises:
        ValueError: if the file has different columns.
    """
    if file.exists():
        with file.open(newline="") as known:
            header = next(csv.reader(known), [])
        if header != list(columns):
            raise ValueError(f"{file} has columns {header}; expected {list(columns)}")


def append_rows(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a file, with a header if it is new. Its folder is made if need be.

    Raises:
        ValueError: if the file has different columns.
    """
    check_columns(file, columns)
    file.parent.mkdir(parents=True, exist_ok=True)
    is_new = not file.exists()
    with file.open("a", newline="") as out:
        writer = csv.DictWriter(out, fieldnames=list(columns))
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
