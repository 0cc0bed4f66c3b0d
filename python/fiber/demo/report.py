"""Demo report: a self-contained HTML page, and a table for the terminal."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fiber.atomic_io import write_file
from fiber.demo.abilities import STANDARD_ERRORS, Ability, percent
from fiber.demo.contact_sheet import IMAGE_WIDTH
from fiber.demo.floors import MetricRow

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_COLUMNS = ("metric", "split", "model", "chance", "blind", "permuted", "floor", "")


class Throughput(NamedTuple):
    """Speed of one stage."""

    stage: str
    #: Number of images processed, counting repeats.
    images: int
    #: Wall-clock time.
    seconds: float


class HeadlineBar(NamedTuple):
    """One bar of a headline. Values are fractions."""

    label: str
    value: float
    #: CSS class: "chance", "blind", "val" or "novel".
    style: str
    #: The better baseline of the bar's split, drawn as a mark.
    mark: float | None = None


class Headline(NamedTuple):
    """One metric in plain words, with its bars."""

    title: str
    #: What is counted.
    how: str
    bars: Sequence[HeadlineBar]
    #: The worst of the verdicts of `fiber.demo.abilities.judge` on the splits.
    verdict: str


class TileText(NamedTuple):
    """One line of text below an image."""

    #: Number of the box with this text; 0 if there is only one box or none.
    number: int
    text: str
    verdict: str
    is_right: bool


class Tile(NamedTuple):
    """An image with boxes, and the texts below it."""

    #: JPEG file.
    image: bytes
    texts: Sequence[TileText]

    @property
    def alt(self) -> str:
        """Description for those who do not see the image."""
        return "; ".join(f"{line.text}: {line.verdict}" for line in self.texts)


class Group(NamedTuple):
    """Tiles under a sentence that tells how they were chosen."""

    title: str
    tiles: Sequence[Tile]


class KindTable(NamedTuple):
    """Accuracy by kind of word, for one task."""

    title: str
    #: Name and example of each kind, with its abilities by split.
    kinds: Sequence[tuple[str, str, Sequence[Ability]]]


class Claim(NamedTuple):
    """What fusion does for one metric, in texts such as "96% (96 to 97)"."""

    what: str
    guess: str
    fused: str
    #: Without fusion, after as many samples.
    same_samples: str
    #: Without fusion, after as much time.
    same_time: str
    finding: str


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """Content of the report."""

    title: str
    #: One sentence for the table of metrics, or the start of the list of problems.
    verdict: str
    #: Reasons for a failure.
    problems: Sequence[str]
    rows: Sequence[MetricRow]
    throughput: Sequence[Throughput]
    #: Shell commands that reproduce the demo.
    commands: Sequence[str]
    machine: Mapping[str, str]
    #: What the split `novel` shows.
    novel: str = "new combinations"
    #: What was trained, and on what.
    lead: Sequence[str] = ()
    #: What the model can and cannot do, as (CSS class, heading, texts).
    summary: Sequence[tuple[str, str, Sequence[str]]] = ()
    headlines: Sequence[Headline] = ()
    #: How the images of `twice` were chosen, and on how many both objects are found.
    twice_text: str = ""
    #: For each image, a title and one tile per expression.
    twice: Sequence[tuple[str, Sequence[Tile]]] = ()
    #: How the images of `scored` were chosen, and how many are right.
    scored_text: str = ""
    scored: Sequence[Group] = ()
    kinds: Sequence[KindTable] = ()
    #: What the evidence bench found on fusion.
    claims: Sequence[Claim] = ()
    #: Shell commands for images of one's own, and which images the model understands.
    own_commands: Sequence[str] = ()
    own_text: str = ""
    #: (caption, PNG file) pairs.
    curves: Sequence[tuple[str, Path]] = ()
    notes: Sequence[str] = ()


def format_table(rows: Sequence[MetricRow]) -> str:
    """Format the metrics for a terminal, one line per metric and split."""
    lines = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    text = []
    for line in lines:
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line[2:-1], widths[2:-1], strict=True)]
        text.append("  ".join([*left, *right, line[-1]]).rstrip())
    text.insert(1, "-" * max(map(len, text)))
    return "\n".join(text)


def _cells(row: MetricRow) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    numbers = (row.model, row.chance, row.blind, row.permuted, row.floor)
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
    environment.filters["percent"] = percent
    environment.filters["data_url"] = _data_url
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        report=report,
        standard_errors=STANDARD_ERRORS,
        tile_width=IMAGE_WIDTH,
        columns=_COLUMNS,
        rows=[(row, _cells(row)) for row in report.rows],
        curves=[(caption, file.read_bytes()) for caption, file in report.curves],
        throughput=[
            (stage, images, f"{seconds:.1f}", f"{images / seconds:.0f}")
            for stage, images, seconds in report.throughput
            if seconds > 0
        ],
    )
    write_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def _data_url(image: bytes) -> str:
    """Encode a PNG or JPEG file as a URL."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(image).decode()
