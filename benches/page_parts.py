"""What the sections of the results page share: rows, tables, and when a difference is one."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence

from experiments import RESULTS


def read(name: str) -> list[dict[str, str]]:
    """Read the rows of a bench; none if it was never run."""
    file = RESULTS / f"{name}.csv"
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Write a table of Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def spread(values: Sequence[float]) -> str:
    """Mean of the seeds, with the smallest and the largest where there are several."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def machines(rows: Iterable[dict[str, str]]) -> str:
    """Name what the rows were measured on, each machine and commit once."""
    found = dict.fromkeys(
        f"{row['processor']}, {row['cores']} cores, torch {row['torch']}, commit"
        f" {row['commit'][:12]}"
        for row in rows
    )
    return "; ".join(found)


def change(whole: Sequence[float], other: Sequence[float]) -> str:
    """Say how an arm differs from the whole, if three seeds can show it.

    Every seed of one lies above every seed of the other then, and the means are two of the larger
    standard deviation apart.
    """
    if len(whole) < 3 or len(other) < 3:
        return ""
    apart = statistics.mean(other) - statistics.mean(whole)
    separate = min(other) > max(whole) or max(other) < min(whole)
    if not separate or abs(apart) < 2 * max(statistics.stdev(whole), statistics.stdev(other)):
        return ""
    return f"{'rises' if apart > 0 else 'falls'} by {abs(apart):.3f}"
