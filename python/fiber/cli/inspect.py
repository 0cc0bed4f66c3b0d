"""`fiber data inspect`: what data hold, and which of their files are broken."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from fiber.data.skip_report import counted
from fiber.data.tools.inspect import Bar, PartReport, PictureReport, Report, histogram
from fiber.data.tools.inspect import inspect as look
from fiber.visualize import ContactSheet

#: Classes of a file that are named with their boxes.
_CLASSES = 12
#: Faults that are named one by one.
_NAMED = 10
#: Letters of the longest bar.
_BAR = 30


def inspect(
    source: Path,
    splits: Sequence[str] = (),
    *,
    sheet: Path | None = None,
    as_json: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Print what is there; gives the exit code: 1 if there are faults.

    Args:
        source: a folder or a file.
        splits: those that are looked into; by default all.
        sheet: file to draw some pictures to.
        as_json: print one JSON object in place of text for people.
        progress: called with (pictures decoded, pictures in all) of each split.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: if it holds nothing that is known.
        OSError: if the sheet cannot be written.
    """
    drawn = ContactSheet()
    report = look(source, splits, shown=drawn.add if sheet is not None else None, progress=progress)
    if as_json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        _print(report, source)
    if sheet is not None:
        from fiber.postprocess.files import save_picture

        if drawn.is_empty:
            # Why is among the faults.
            print(f"not drawn: {sheet}, since no record can be read", file=sys.stderr)
            return 1
        save_picture(drawn.draw, sheet)
        # One JSON object alone stands on the output where it was asked for.
        print(f"saved: {sheet}", file=sys.stderr if as_json else sys.stdout)
    return 1 if report.faults else 0


def _print(report: Report, source: Path) -> None:
    description = source / "dataset.json"
    if description.is_file():
        made = json.loads(description.read_text(encoding="utf-8")).get("parameters", {})
        print(", ".join(f"{name} {value}" for name, value in made.items()))
    for split in dict.fromkeys(part.split for part in report.parts):
        print(f"\n{split}")
        for part in (part for part in report.parts if part.split == split):
            said = "unreadable" if part.fault else _summary(part)
            print(f"  {part.source:<10} {said}")
    print("\npictures")
    for pictures in report.pictures:
        print(f"  {pictures.split:<10} {_pictures(pictures)}")
    _print_histograms(report)
    faults = report.faults
    for fault in faults[:_NAMED]:
        print(f"fault: {fault}")
    if len(faults) > _NAMED:
        print(f"and {len(faults) - _NAMED} more (--json lists all)")


def _print_histograms(report: Report) -> None:
    words: dict[str, list[int]] = {}
    sides: dict[str, list[float]] = {}
    for part in report.parts:
        words.setdefault(part.source, []).extend(part.words)
        sides.setdefault(part.source, []).extend(part.boxes.sides)
    for source, counts in words.items():
        _print_bars(f"words of a text, {source}", histogram(counts))
    for source, lengths in sides.items():
        _print_bars(f"side of a box in pixels (root of its area), {source}", histogram(lengths))
    shorter = [
        min(size)
        for pictures in report.pictures
        for size, count in pictures.sizes.items()
        for _ in range(count)
    ]
    _print_bars("shorter side of a picture in pixels", histogram(shorter))


def _print_bars(title: str, bars: list[Bar]) -> None:
    if len(bars) < 2:
        # One number for all stands above.
        return
    most = max(bar.number for bar in bars)
    names = [f"{b.first}" if b.first == b.last else f"{b.first} to {b.last}" for b in bars]
    width = max(map(len, names))
    print(f"\n{title}")
    for name, bar in zip(names, bars, strict=True):
        print(f"  {name:>{width}}  {'#' * -(-_BAR * bar.number // most):<{_BAR}}  {bar.number}")


def _summary(part: PartReport) -> str:
    parts = [f"{part.records} records"]
    if part.words:
        parts.append(f"{min(part.words)} to {max(part.words)} words")
    boxes = part.boxes.to_dict()
    if boxes:
        parts.append(f"{boxes['boxes']} boxes")
    if part.classes:
        # From the most to the least frequent; what no box shows is not learned.
        counts = sorted(part.classes.items(), key=lambda item: -item[1])
        named = [f"{name} {count}" for name, count in counts]
        some = named if len(named) <= _CLASSES else [*named[: _CLASSES - 1], "...", named[-1]]
        parts.append(f"{len(named)} classes ({', '.join(some)})")
    if part.answers:
        common = ", ".join(f"{answer} {count}" for answer, count in part.answers.most_common(3))
        parts.append(f"{len(part.answers)} answers ({common}, ...)")
    if part.truths:
        parts.append(f"{part.truths[True]} true, {part.truths[False]} false")
    if boxes:
        parts.append(
            f"{boxes['small']} small, {boxes['medium']} medium, {boxes['large']} large boxes,"
            f" {boxes['per_record_most']} in a record at most"
        )
    parts += [counted(count, what) for what, count in sorted(part.counts.items())]
    return "; ".join([", ".join(parts), *part.notes])


def _pictures(pictures: PictureReport) -> str:
    statuses = pictures.statuses
    broken = statuses.total() - statuses["ok"]
    kinds = ", ".join(f"{n} {status}" for status, n in statuses.items() if status != "ok")
    said = f"{statuses.total()} pictures, {_sizes(pictures.sizes)}, {broken} broken"
    if pictures.other_sizes:
        said += f", {len(pictures.other_sizes)} of another size than annotated"
    if pictures.outside:
        said += f", {counted(len(pictures.outside), 'records')} with boxes outside"
    return f"{said} ({kinds})" if kinds else said


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    if not sizes:
        return "none that can be read"
    smallest, largest = min(sizes), max(sizes)
    (height, width), _ = sizes.most_common(1)[0]
    if smallest == largest:
        return f"all {width} x {height} pixels"
    heights, widths = [h for h, _ in sizes], [w for _, w in sizes]
    return (
        f"{min(widths)} to {max(widths)} pixels wide, {min(heights)} to {max(heights)} high,"
        f" most often {width} x {height}"
    )
