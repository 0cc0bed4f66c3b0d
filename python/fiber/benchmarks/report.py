"""The benchmark's table, rows, chart and judgement, from what was measured."""

from __future__ import annotations

import csv
import datetime
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fiber.atomic_io import write_file
from fiber.benchmarks.lines import GATES, Gate
from fiber.benchmarks.measure import Result, Side
from fiber.benchmarks.peers import OURS
from fiber.env import describe_machine

#: Columns of the table: heading and width; the last one runs on.
_COLUMNS = (("peer", 21), ("CPU", 9), ("20-80 %", 15), ("ratio", 7), ("per second", 11))
_COLUMNS += (("peak MB", 8), ("levels", 7), ("version", 10), ("remark", 0))

#: Columns of a row, before those of the machine.
ROW_COLUMNS = (
    "date",
    "line",
    "work",
    "material",
    "side",
    "output",
    "unit",
    "median",
    "p20",
    "p80",
    "rounds",
    "peer",
    "ratio_to_peer",
    "per_wall_second",
    "peak_megabytes",
    "levels_from_pillow",
    "load",
    "versions",
    "remark",
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A gate beside what was measured."""

    gate: Gate
    #: The fastest of its rivals that was measured; "" for none.
    rival: str
    #: Its CPU time over ours.
    ratio: float | None

    @property
    def holds(self) -> bool | None:
        """Whether the ratio is reached; None where it was not measured, or nothing is asked."""
        if self.ratio is None or self.gate.least is None:
            return None
        return self.ratio >= self.gate.least

    def __str__(self) -> str:
        gate = self.gate
        what = f"{gate.kind} {gate.corpus} {gate.output} beside {' or '.join(gate.rivals)}"
        found = "not measured" if self.ratio is None else f"{self.ratio:.2f} ({self.rival})"
        asked = "reported" if gate.least is None else f"gate {gate.least:g}"
        if gate.least is not None and self.ratio is not None:
            asked += " holds" if self.holds else " MISSED"
        if gate.target is not None:
            asked += f", target {gate.target:g}"
            if self.ratio is not None:
                asked += " met" if self.ratio >= gate.target else " missed"
        return f"{what}: {found}; {asked}"


def judge(results: Sequence[Result], gates: Iterable[Gate] = GATES) -> list[Verdict]:
    """Compare what was measured with the ratios that are asked for."""
    verdicts = []
    for gate in gates:
        wanted = (gate.kind, gate.corpus, gate.output)
        result = next(
            (r for r in results if (r.line.kind, r.line.corpus, r.line.output) == wanted), None
        )
        ours = result.side(OURS.name) if result else None
        rivals = [s for name in gate.rivals if result and (s := result.side(name))]
        if ours is None or not rivals:
            verdicts.append(Verdict(gate=gate, rival="", ratio=None))
            continue
        best = min(rivals, key=lambda side: side.median)
        verdicts.append(Verdict(gate=gate, rival=best.peer.name, ratio=best.median / ours.median))
    return verdicts


def table(result: Result) -> str:
    """Write one line's sides, the fastest first; ratios are their CPU time over fiber's."""
    line = result.line
    heads = [
        f"\n{line.title}; {line.output}",
        f"{result.material}; CPU in {line.unit} a {line.counted}, load {result.load:.1f}",
        _row([head for head, _ in _COLUMNS]),
    ]
    ours = result.side(OURS.name)
    measured = sorted((s for s in result.sides if s.costs), key=lambda side: side.median)
    rows = [_row(_cells(side, ours)) for side in measured]
    failed = [f"{s.peer.name:<21} failed: {s.failure}" for s in result.sides if s.failure]
    absent = [f"not installed: {', '.join(result.absent)}"] if result.absent else []
    return "\n".join([*heads, *rows, *failed, *absent])


def _row(cells: Sequence[str]) -> str:
    first, *others, last = ((cell, width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))
    middle = "".join(f"{cell:>{width}} " for cell, width in others)
    return f"{first[0]:<{first[1]}} {middle} {last[0]}".rstrip()


def _cells(side: Side, ours: Side | None) -> list[str]:
    low, high = _fifths(side.costs)
    return [
        side.peer.name,
        _three(side.median),
        f"{_three(low)}-{_three(high)}",
        f"{side.median / ours.median:.2f}x" if ours else "",
        f"{statistics.median(side.rates):,.0f}",
        f"{side.peak_bytes / 1e6:,.0f}",
        "" if side.levels is None else f"{side.levels:.2f}",
        _version(side),
        side.remark,
    ]


def _version(side: Side) -> str:
    return next(iter(side.versions.values()), "")


def _three(value: float) -> str:
    """Three digits, but not fewer than stand before the point."""
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f}"


def _fifths(values: Sequence[float]) -> tuple[float, float]:
    """20th and 80th percentile."""
    if len(values) < 2:
        return values[0], values[0]
    found = statistics.quantiles(values, n=5, method="inclusive")
    return found[0], found[-1]


def rows(results: Sequence[Result]) -> list[dict[str, str]]:
    """One row for each side of each line, with what it was measured on."""
    machine = describe_machine()
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    found = []
    for result in results:
        line, ours = result.line, result.side(OURS.name)
        for side in result.sides:
            if not side.costs:
                continue
            low, high = _fifths(side.costs)
            levels = "" if side.levels is None else f"{side.levels:.3f}"
            found.append(
                {
                    "date": date,
                    "line": line.name,
                    "work": line.work,
                    "material": result.material,
                    "side": side.peer.name,
                    "output": line.output,
                    "unit": f"CPU {line.unit} a {line.counted}",
                    "median": f"{side.median:.4g}",
                    "p20": f"{low:.4g}",
                    "p80": f"{high:.4g}",
                    "rounds": str(len(side.costs)),
                    "peer": OURS.name,
                    "ratio_to_peer": f"{side.median / ours.median:.4g}" if ours else "",
                    "per_wall_second": f"{statistics.median(side.rates):.4g}",
                    "peak_megabytes": f"{side.peak_bytes / 1e6:.0f}",
                    "levels_from_pillow": levels,
                    "load": f"{result.load:.1f}",
                    "versions": " ".join(f"{k}={v}" for k, v in side.versions.items()),
                    "remark": side.remark,
                    **machine,
                }
            )
    return found


def append_rows(file: Path, new: Sequence[dict[str, str]]) -> None:
    """Add rows to a CSV file.

    Raises:
        ValueError: if the file has other columns.
    """
    check_columns(file)
    is_new = not file.exists()
    with file.open("a", newline="") as out:
        writer = csv.DictWriter(out, fieldnames=_columns())
        if is_new:
            writer.writeheader()
        writer.writerows(new)


def check_columns(file: Path) -> None:
    """Check that rows can be added to a file.

    Raises:
        ValueError: if it has other columns.
    """
    if file.exists():
        with file.open(newline="") as known:
            header = next(csv.reader(known), [])
        if header != _columns():
            raise ValueError(f"{file} has the columns {header}; expected {_columns()}")


def _columns() -> list[str]:
    return [*ROW_COLUMNS, *describe_machine()]


def draw_chart(file: Path, results: Sequence[Result]) -> None:
    """Draw one panel of bars a line: CPU time of every side, ours in colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [result for result in results if any(side.costs for side in result.sides)]
    heights = [1.2 + 0.24 * sum(bool(side.costs) for side in r.sides) for r in shown]
    figure, panels = pyplot.subplots(
        len(shown),
        figsize=(9, sum(heights)),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for panel, result in zip(panels[:, 0], shown, strict=True):
        sides = sorted((s for s in result.sides if s.costs), key=lambda s: -s.median)
        names = [side.peer.name for side in sides]
        colors = ["#c2410c" if side.peer is OURS else "#94a3b8" for side in sides]
        bars = panel.barh(names, [side.median for side in sides], color=colors)
        ours = result.side(OURS.name)
        panel.bar_label(
            bars,
            [
                _three(s.median) + (f" ({s.median / ours.median:.1f}x)" if ours else "")
                for s in sides
            ],
            padding=3,
            fontsize=8,
        )
        panel.margins(x=0.15)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_title(f"{result.line.title}; {result.line.name}", fontsize=9, loc="left")
        panel.set_xlabel(
            f"CPU {result.line.unit} a {result.line.counted}, less is better", fontsize=8
        )
    machine = describe_machine()
    figure.suptitle(
        f"{machine['processor']}, {machine['cores']} cores; fiber {machine['fiber']}"
        f" {machine['commit'][:12]}; {datetime.datetime.now(datetime.UTC).date()}",
        fontsize=9,
    )
    write_file(file, lambda part: figure.savefig(part, format="png", dpi=120))
    pyplot.close(figure)
