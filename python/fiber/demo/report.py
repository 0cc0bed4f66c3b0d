"""The demo's page: one self-contained HTML file, and the same table for the terminal."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fiber.atomic_io import write_file
from fiber.demo.floors import Row

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, th.text, td.text { text-align: left; }
tr.failed td { background: #fdd; } tr.unlearned td { color: #777; } td.model { font-weight: 600; }
pre { background: #f5f5f5; padding: .7rem; white-space: pre-wrap; } img { max-width: 100%; }
figure { margin: 1rem 0; } figcaption, .note { color: #555; font-size: .9rem; }
"""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Speed of one stage."""

    #: What was done.
    stage: str
    #: Pictures handled, repeated ones counted each time.
    pictures: int
    #: Wall-clock seconds.
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the page shows."""

    title: str
    #: One sentence on the outcome.
    verdict: str
    #: What made the demo fail, if anything.
    problems: Sequence[str]
    rows: Sequence[Row]
    throughput: Sequence[Throughput]
    #: Training curves and contact sheets: (caption, PNG file).
    figures: Sequence[tuple[str, Path]]
    #: Shell commands that repeat each stage.
    commands: Sequence[str]
    #: What the machine and the versions were.
    machine: dict[str, str]
    #: Rows of the ablation table; the first one holds the column names.
    ablations: Sequence[Sequence[str]] = ()
    #: Where the ablation rows come from.
    ablations_source: str = ""
    notes: Sequence[str] = field(default_factory=tuple)


def format_table(rows: Sequence[Row]) -> str:
    """Lay the metrics out for a terminal, one line a metric and split."""
    header = ("metric", "split", "model", "chance", "blind", "no fusion", "permuted", "floor", "")
    lines = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = []
    for line in lines:
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line[2:8], widths[2:8], strict=True)]
        text.append("  ".join([*left, *right, line[8]]).rstrip())
    text.insert(1, "-" * max(map(len, text)))
    return "\n".join(text)


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    return (
        row.name,
        row.split,
        number(row.model),
        number(row.chance),
        number(row.blind),
        number(row.no_fusion),
        number(row.permuted),
        number(row.floor),
        row.verdict,
    )


def write_html(report: Report, path: Path) -> None:
    """Write the page with its pictures embedded, under a temporary name first."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f"<title>{html.escape(report.title)}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(report.title)}</h1><p>{html.escape(report.verdict)}</p>",
        _list(report.problems),
        _metrics_section(report.rows),
    ]
    for caption, file in report.figures:
        parts.append(
            f"<figure><img src='{_data_url(file)}' alt='{html.escape(caption, quote=True)}'>"
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    if report.ablations:
        parts.append("<h2>Ablations</h2>")
        parts.append(f"<p class='note'>{html.escape(report.ablations_source)}</p>")
        parts.append(_table(report.ablations[0], report.ablations[1:]))
    parts.append("<h2>Throughput</h2>")
    parts.append(
        _table(
            ("stage", "pictures", "seconds", "pictures per second"),
            [
                (t.stage, str(t.pictures), f"{t.seconds:.1f}", f"{t.pictures / t.seconds:.0f}")
                for t in report.throughput
                if t.seconds > 0
            ],
        )
    )
    parts.append("<h2>Machine</h2>")
    parts.append(_table(("what", "value"), sorted(report.machine.items())))
    parts.append("<h2>Commands that repeat it</h2>")
    parts.append(f"<pre>{html.escape(chr(10).join(report.commands))}</pre>")
    parts += [f"<p class='note'>{html.escape(note)}</p>" for note in report.notes]
    text = "\n".join(parts) + "\n"
    write_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def _metrics_section(rows: Sequence[Row]) -> str:
    body = []
    for row in rows:
        cells = _cells(row)
        kind = {"FELL": "failed", "ok": ""}.get(row.verdict, "unlearned")
        text = "".join(f"<td class='text'>{html.escape(cell)}</td>" for cell in cells[:2])
        text += f"<td class='model'>{cells[2]}</td>"
        text += "".join(f"<td>{cell}</td>" for cell in cells[3:8])
        body.append(f"<tr class='{kind}'>{text}<td class='text'>{html.escape(cells[8])}</td></tr>")
    heads = ("model", "chance", "blind", "no fusion", "permuted", "floor")
    return (
        "<h2>Results</h2><table><tr><th>metric</th><th class='text'>split</th>"
        + "".join(f"<th>{name}</th>" for name in heads)
        + "<th></th></tr>"
        + "".join(body)
        + "</table><p class='note'>novel: compositions that training never showed. blind: the best"
        " guess without the picture, counted on the training split. chance: a random candidate,"
        " answer, word or (with boxes) object of the picture, whose box it knows exactly: a model"
        " that has to find the boxes by itself may be below it. no fusion: the same model with its"
        " gates set to 0; a dash where nothing fused is asked, or where the fast demo leaves it"
        " out. permuted: the same model shown other pictures. floor: the least value"
        " with which the demo passes, from seeds that were recorded. A metric has none where a seed"
        " did not beat the blind guess (not learned), or where other pictures did as well (not from"
        " the picture).</p>" + _fusion_note(rows)
    )


def _fusion_note(rows: Sequence[Row]) -> str:
    """Say where the model does without fusion, which is what it is built for."""
    without = [
        f"{row.name} on {row.split}"
        for row in rows
        if row.no_fusion is not None and row.no_fusion >= row.model
    ]
    if not without:
        return ""
    names = html.escape(", ".join(without))
    return f"<p class='note'>As good or better with fusion switched off: {names}.</p>"


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th class='text'>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td class='text'>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _data_url(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii")
