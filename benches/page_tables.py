"""Rows, tables and verdicts of docs/results.md, which `results_page.py` writes."""

from __future__ import annotations

import csv
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

RESULTS = Path(__file__).with_name("results")

Row = dict[str, str]

#: Content of a block whose rows are not complete.
NOT_MEASURED = "Not measured yet.\n"
#: Number of standard deviations from which on a difference is claimed.
CLAIMED = 3.0
#: Splits of the generated data; novel has combinations that are in no training image.
SPLITS = ("val", "novel")

#: Titles, targets and names.
PARTS = tomllib.loads(Path(__file__).with_name("results_page.toml").read_text(encoding="utf-8"))


def read(name: str) -> list[Row]:
    """Read all rows of a bench."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def newest(rows: Iterable[Row]) -> dict[str, Row]:
    """Keep the rows of the last day, of each side the last one: by side."""
    rows = list(rows)
    last = max(row["date"] for row in rows)
    return {row["side"]: row for row in rows if row["date"] == last}


def machines(rows: Iterable[Row]) -> str:
    """List the machines that rows were measured on, with the commits."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        machine = f"{row['processor']}, {row['cores']} cores, torch {row['torch']}"
        found[machine][row["commit"][:12]] = None
    parts = [f"{machine} ({', '.join(commits)})" for machine, commits in found.items()]
    return f"\nMeasured on {'; '.join(parts)}.\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def shown(text: str) -> str:
    """Write a side or unit of the rows in the words of the page."""
    for old, new in PARTS["shown"].items():
        text = text.replace(old, new)
    return text


def value(row: Row) -> str:
    """Write a median with its unit."""
    unit = row["unit"].removeprefix("CPU ").replace(" a ", " per ")
    return f"{row['median']} {shown(unit)}"


def factor(ratio: float) -> str:
    """Write a ratio."""
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}x"


def verdict(asked: str, met: bool) -> str:
    """Write whether a target is met."""
    return f"{asked} {'met' if met else '**missed**'}"


def spread(values: Sequence[float]) -> str:
    """Write the mean of the seeds, with the least and the greatest if there are several."""
    if not values:
        return "-"
    many = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{mean(values):.3f}{many}"


def judged(name: str, row: Row) -> str:
    """Write the targets of a side and whether they are met; nothing if it has none."""
    found = []
    for kind, targets in PARTS["targets"].items():
        fitting = (t for file, side, t in targets if file == name and row["side"].startswith(side))
        if (bound := next(fitting, None)) is None:
            continue
        if kind == "time":
            found.append(verdict(f"{bound:g} {row['unit']}", float(row["median"]) <= bound))
        else:
            met = float(row["ratio_to_peer"]) <= 1 / bound
            found.append(verdict(f"{'gate ' if kind == 'gate' else ''}{bound:.3g}x", met))
    return ", ".join(found)


def groups(rows: Iterable[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    """Group rows by the values of columns."""
    found: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple(row[column] for column in columns)].append(row)
    return found


def floats(rows: Iterable[Row], column: str, **kept: str) -> list[float]:
    """Read a column of the rows that have some values."""
    return [float(row[column]) for row in rows if kept.items() <= row.items()]


def differs(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether the means are more than three of the larger standard deviation apart."""
    return abs(mean(one) - mean(other)) > CLAIMED * max(stdev(one), stdev(other))


def is_better(one: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Return whether a mean is claimed to be above each of the others."""
    return all(mean(one) > mean(other) and differs(one, other) for other in others)


def is_above(values: Sequence[float], bounds: Sequence[float]) -> bool:
    """Return whether the mean is more than three standard deviations above every bound."""
    return mean(values) - CLAIMED * stdev(values) > max(bounds)


def values_of(rows: Sequence[Row], metric: str, split: str, *arms: str) -> list[list[float]]:
    """Return the values of each arm; empty if the metric is not measured on the split."""
    column = f"{metric}/{split}"
    own = [row for row in rows if row[column]]
    return [floats(own, column, arm=arm) for arm in arms] if own else []


def complete(rows: Sequence[Row], arms: Sequence[str], seeds: int) -> list[str]:
    """Return the arms that have a row of each seed."""
    return [arm for arm in arms if sum(row["arm"] == arm for row in rows) >= seeds]


def guesses() -> dict[tuple[str, str], float]:
    """Read the better of chance and the blind baseline, by metric and split."""
    return {
        (row["metric"], row["split"]): max(float(row[kind] or 0) for kind in ("chance", "blind"))
        for row in read("evidence_guesses")
    }


def by_arm(rows: Sequence[Row], metrics: Mapping[str, str], arms: Sequence[str]) -> str:
    """Write a table of metrics and splits by arm; differences to the first arm are marked.

    The column *guess* has the better of chance and the blind baseline.
    """
    known = guesses()
    body = []
    for metric, name in metrics.items():
        for split in SPLITS:
            if values := values_of(rows, metric, split, *arms):
                cells = [
                    spread(other) + (" \\*" if differs(values[0], other) else "")
                    for other in values[1:]
                ]
                guess = f"{known[metric, split]:.3f}"
                body.append([name, split, guess, spread(values[0]), *cells])
    return table(["metric", "split", "guess", *arms], body)


def compared(rows: Sequence[Row], metrics: Mapping[str, str], one: str, other: str) -> str:
    """List the metrics on which an arm is claimed to be better than another, or worse.

    A metric counts if this holds on both splits, or on val if it is not measured on novel.
    """
    better, worse = [], []
    for metric, name in metrics.items():
        pairs = [
            values for split in SPLITS if (values := values_of(rows, metric, split, one, other))
        ]
        if all(is_better(own, [its]) for own, its in pairs):
            better.append(name)
        elif all(is_better(its, [own]) for own, its in pairs):
            worse.append(name)
    return f"better on {', '.join(better) or 'nothing'}; worse on {', '.join(worse) or 'nothing'}"
