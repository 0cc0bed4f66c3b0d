"""Demo report: a self-contained HTML page, and a table for the terminal."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fiber.atomic_io import write_file
from fiber.demo.floors import MetricRow

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_COLUMNS = ("metric", "split", "model", "chance", "blind", "no fusion", "permuted", "floor", "")


class Throughput(NamedTuple):
    """Speed of one stage."""

    stage: str
    #: Number of images processed, counting repeats.
    images: int
    #: Wall-clock time.
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """Content of the report."""

    title: str
    verdict: str
    #: Reasons for a failure.
    problems: Sequence[str]
    rows: Sequence[MetricRow]
    throughput: Sequence[Throughput]
    #: (caption, PNG file) pairs.
    figures: Sequence[tuple[str, Path]]
    #: Shell commands that reproduce the demo.
    commands: Sequence[str]
    machine: dict[str, str]
    #: Rows of the ablation table, starting with the column names, and their source.
    ablations: Sequence[Sequence[str]] = ()
    ablations_source: str = ""
    notes: Sequence[str] = ()


def format_table(rows: Sequence[MetricRow]) -> str:
    """Format the metrics for a terminal, one line per metric and split."""
    lines = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    text = []
    for line in lines:
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line[2:8], widths[2:8], strict=True)]
        text.append("  ".join([*left, *right, line[8]]).rstrip())
    text.insert(1, "-" * max(map(len, text)))
    return "\n".join(text)


def _cells(row: MetricRow) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    numbers = (row.model, row.chance, row.blind, row.no_fusion, row.permuted, row.floor)
    return (row.name, row.split, *map(number, numbers), row.verdict)


def write_html(report: DemoReport, path: Path) -> None:
    """Write the page with embedded images, atomically.

    Raises:
        OSError: if a figure cannot be read, or the page cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        report=report,
        columns=_COLUMNS,
        rows=[(row, _cells(row)) for row in report.rows],
        fusion_not_needed=[
            f"{row.name} on {row.split}"
            for row in report.rows
            if row.no_fusion is not None and row.no_fusion >= row.model
        ],
        figures=[
            (caption, "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode())
            for caption, file in report.figures
        ],
        throughput=[
            (stage, images, f"{seconds:.1f}", f"{images / seconds:.0f}")
            for stage, images, seconds in report.throughput
            if seconds > 0
        ],
    )
    write_file(path, lambda part: part.write_text(text, encoding="utf-8"))
