"""Benchmark reports: table, CSV rows, chart and gate results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fiber.atomic_io import write_file
from fiber.benchmarks.csv_rows import p20_p80, spread_columns, today
from fiber.benchmarks.measure import Result, Side
from fiber.benchmarks.peers import OURS
from fiber.benchmarks.workloads import GATES, Gate
from fiber.env import describe_machine

#: Heading and width of the table's columns. The last one is not padded.
_COLUMNS = (("peer", 21), ("CPU", 9), ("20-80%", 15), ("ratio", 7), ("per second", 11))
_COLUMNS += (("peak MB", 8), ("levels", 7), ("version", 10), ("remark", 0))
_ROW_COLUMNS = """
date line work material side output unit median p20 p80 rounds peer ratio_to_peer per_wall_second
peak_megabytes levels_from_pillow load versions remark
"""
#: Columns of a CSV row, before those of the machine.
ROW_COLUMNS = tuple(_ROW_COLUMNS.split())


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A gate and its measured ratio."""

    gate: Gate
    #: Fastest measured peer of the gate; "" if none was measured.
    rival: str
    #: CPU time of `rival` divided by fiber's.
    ratio: float | None

    @property
    def holds(self) -> bool | None:
        """True if the required ratio is reached; None if no ratio is required or measured."""
        if self.ratio is None or self.gate.least is None:
            return None
        return self.ratio >= self.gate.least

    def __str__(self) -> str:
        gate = self.gate
        what = f"{gate.kind} {gate.corpus} {gate.output} vs {' or '.join(gate.rivals)}"
        found = "not measured" if self.ratio is None else f"{self.ratio:.2f} ({self.rival})"
        bound = "reported" if gate.least is None else f"gate {gate.least:g}"
        if gate.least is not None and self.ratio is not None:
            bound += " holds" if self.holds else " MISSED"
        if gate.target is not None:
            bound += f", target {gate.target:g}"
            if self.ratio is not None:
                bound += " met" if self.ratio >= gate.target else " missed"
        return f"{what}: {found}; {bound}"


def judge(results: Sequence[Result], gates: Iterable[Gate] = GATES) -> list[Verdict]:
    """Compare measured ratios with the required ones."""
    verdicts = []
    for gate in gates:
        result = next((r for r in results if r.workload.key == gate.key), None)
        ours = result.side(OURS.name) if result else None
        rivals = [s for name in gate.rivals if result and (s := result.side(name))]
        best = min(rivals, key=lambda side: side.median, default=None)
        if ours is None or best is None:
            verdicts.append(Verdict(gate=gate, rival="", ratio=None))
        else:
            ratio = best.median / ours.median
            verdicts.append(Verdict(gate=gate, rival=best.peer.name, ratio=ratio))
    return verdicts


def table(result: Result) -> str:
    """Format one workload as a table, fastest peer first, with CPU time relative to fiber's."""
    workload = result.workload
    heads = [
        f"\n{workload.title}; {workload.output}",
        f"{result.material}; CPU in {workload.unit} per {workload.counted}, load {result.load:.1f}",
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
    low, high = p20_p80(side.costs)
    return [
        side.peer.name,
        _three_digits(side.median),
        f"{_three_digits(low)}-{_three_digits(high)}",
        f"{side.median / ours.median:.2f}x" if ours else "",
        f"{statistics.median(side.rates):,.0f}",
        f"{side.peak_bytes / 1e6:,.0f}",
        "" if side.levels is None else f"{side.levels:.2f}",
        next(iter(side.versions.values()), ""),
        side.remark,
    ]


def _three_digits(value: float) -> str:
    """Format a number with three significant digits, or as an integer if it is 100 or more."""
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f}"


def rows(results: Sequence[Result]) -> list[dict[str, str]]:
    """Return one CSV row per measured peer and workload, with a description of the machine."""
    machine = describe_machine()
    found = []
    for result in results:
        workload, ours = result.workload, result.side(OURS.name)
        for side in result.sides:
            if not side.costs:
                continue
            values = (
                today(),
                workload.name,
                workload.work,
                result.material,
                side.peer.name,
                workload.output,
                f"CPU {workload.unit} per {workload.counted}",
                *spread_columns(side.costs).values(),
                OURS.name,
                f"{side.median / ours.median:.4g}" if ours else "",
                f"{statistics.median(side.rates):.4g}",
                f"{side.peak_bytes / 1e6:.0f}",
                "" if side.levels is None else f"{side.levels:.3f}",
                f"{result.load:.1f}",
                " ".join(f"{name}={version}" for name, version in side.versions.items()),
                side.remark,
            )
            found.append({**dict(zip(ROW_COLUMNS, values, strict=True)), **machine})
    return found


def columns() -> list[str]:
    """Return the columns of a row: those of the measurement, then those of the machine."""
    return [*ROW_COLUMNS, *describe_machine()]


def draw_chart(file: Path, results: Sequence[Result]) -> None:
    """Plot CPU time per peer, one panel per workload, with fiber highlighted."""
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
        labels = [
            _three_digits(s.median) + (f" ({s.median / ours.median:.1f}x)" if ours else "")
            for s in sides
        ]
        panel.bar_label(bars, labels, padding=3, fontsize=8)
        panel.margins(x=0.15)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_title(f"{result.workload.title}; {result.workload.name}", fontsize=9, loc="left")
        unit = f"CPU {result.workload.unit} per {result.workload.counted}"
        panel.set_xlabel(f"{unit}, lower is better", fontsize=8)
    machine = describe_machine()
    figure.suptitle(
        f"{machine['processor']}, {machine['cores']} cores; fiber {machine['fiber']}"
        f" {machine['commit'][:12]}; {today()}",
        fontsize=9,
    )
    write_file(file, lambda part: figure.savefig(part, format="png", dpi=120))
    pyplot.close(figure)
