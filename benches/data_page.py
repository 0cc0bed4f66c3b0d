"""The section of the results page on the data path, from the rows of `bench_data.py`."""

from __future__ import annotations

from collections.abc import Sequence

from page_parts import machines, table

from fiber.benchmarks.lines import GATES, LINES, Gate
from fiber.benchmarks.peers import OURS

Rows = Sequence[dict[str, str]]

_INTRO = """## The data path

From files to batches, fiber beside other loaders (`benches/bench_data.py`; how:
[bench](bench.md)): CPU time of all processes, median of the rounds; the newest rows of each line.
*Ratio*: CPU time over fiber's. *Levels*: mean distance of the first pictures from Pillow's
antialiased resize, of 255.
"""


def section(rows: Rows) -> list[str]:
    """Write the section; nothing where nothing was measured."""
    newest = _newest(rows)
    if not newest:
        return []
    parts = [_INTRO]
    for line in LINES:
        own = [row for row in newest if row["line"] == line.name]
        if own:
            own.sort(key=lambda row: float(row["median"]))
            parts.append(f"### {line.title}, {line.output}\n\n{own[0]['material']}.\n")
            parts.append(table(("side", own[0]["unit"], *_HEADS), [_cells(row) for row in own]))
    judged = [cells for gate in GATES if (cells := _judged(gate, newest))]
    if judged:
        head = ("work", "beside", "ratio", "gate", "target")
        parts += ["### Ratios that are asked for\n", table(head, judged)]
    return [*parts, f"{machines(newest)}.\n"]


_HEADS = ("ratio", "per second", "peak MB", "levels", "versions", "remark")


def _newest(rows: Rows) -> list[dict[str, str]]:
    """Keep each line's rows of its last day, and of several runs of that day the last one."""
    last: dict[str, str] = {}
    for row in rows:
        last[row["line"]] = max(last.get(row["line"], ""), row["date"])
    kept = {(r["line"], r["side"]): r for r in rows if r["date"] == last[r["line"]]}
    return list(kept.values())


def _cells(row: dict[str, str]) -> list[str]:
    return [
        row["side"],
        f"{row['median']} ({row['p20']} to {row['p80']})",
        row["ratio_to_peer"],
        row["per_wall_second"],
        row["peak_megabytes"],
        row["levels_from_pillow"],
        row["versions"].replace("=", " "),
        row["remark"],
    ]


def _judged(gate: Gate, rows: Rows) -> list[str]:
    """Say whether a ratio is reached; nothing where it was not measured."""
    name = f"{gate.kind} {gate.corpus} {gate.output}"
    rivals = [r for r in rows if r["line"] == name and r["side"] in gate.rivals]
    ours = [r for r in rows if r["line"] == name and r["side"] == OURS.name]
    if not rivals or not ours:
        return []
    best = min(rivals, key=lambda row: float(row["median"]))
    ratio = float(best["median"]) / float(ours[0]["median"])
    asked = [
        "-" if bound is None else f"{bound:g}: {'met' if ratio >= bound else 'missed'}"
        for bound in (gate.least, gate.target)
    ]
    return [name, best["side"], f"{ratio:.2f}", *asked]
