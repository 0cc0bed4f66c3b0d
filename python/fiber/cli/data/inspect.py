"""`fiber data inspect`: statistics and faults of a dataset."""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from fiber.atomic_io import read_json
from fiber.data.image_file import DEFAULT_LIMITS, DecodeLimits
from fiber.data.skip_report import counted
from fiber.data.tools.inspect import Bar, DataReport, ImageReport, PartReport, histogram
from fiber.data.tools.inspect import inspect as look
from fiber.messages import printable, shown
from fiber.visualize import ContactSheet

#: Maximum number of classes to list with their box counts.
_MAX_CLASSES = 12
#: Maximum number of faults to list.
_MAX_FAULTS = 10
#: Maximum number of characters of a name, and of another text, from the dataset.
_MAX_NAME, _MAX_TEXT = 60, 1000
#: Maximum size in bytes of dataset.json, and number of parameters to print.
_MAX_JSON_BYTES, _MAX_PARAMETERS = 16 << 20, 30
#: Length of the longest bar in characters.
_BAR_WIDTH = 30


def inspect(
    source: Path,
    splits: Sequence[str],
    sheet: Path | None,
    as_json: bool,
    progress: Callable[[int, int], None],
    *,
    verify: bool = False,
    limits: DecodeLimits = DEFAULT_LIMITS,
) -> int:
    """Print statistics of a dataset; return exit code 1 if there are faults, else 0.

    All splits are read if `splits` is empty. A contact sheet is written to `sheet`, if given.
    `progress` is called with (images decoded, total images) for each split. If `verify`, all files
    of a packed folder are compared with their checksums. `limits` are those of
    decoding one image.

    Raises:
        FileNotFoundError: if the folder or file does not exist.
        ValueError: if the dataset's format is unknown, or if `verify` is set and it is not a packed
            folder.
        OSError: if the contact sheet cannot be written.
    """
    tiles = ContactSheet(limits)
    shown = tiles.add if sheet is not None else None
    report = look(source, splits, verify=verify, shown=shown, progress=progress, limits=limits)
    if as_json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        _print(report, source)
    if sheet is not None:
        from fiber.postprocess.files import save_image

        if tiles.is_empty:
            print(f"not saved: {sheet}: no record can be read (see the faults)", file=sys.stderr)
            return 1
        save_image(tiles.draw, sheet)
        # With --json, only the JSON object is written to stdout.
        print(f"saved: {sheet}", file=sys.stderr if as_json else sys.stdout)
    return 1 if report.faults else 0


def _print(report: DataReport, source: Path) -> None:
    description = source / "dataset.json"
    if description.is_file():
        print(_parameters(description))
    for split in dict.fromkeys(part.split for part in report.parts):
        print(f"\n{_name(split)}")
        for part in (part for part in report.parts if part.split == split):
            print(f"  {part.source:<10} {'unreadable' if part.fault else _summary(part)}")
    print("\nimages")
    for images in report.images:
        print(f"  {_name(images.split):<10} {_images(images)}")
    _print_histograms(report)
    if report.verified is not None:
        print(f"\nchecksums: {report.verified} files, {len(report.changed)} have changed")
    faults = report.faults
    for fault in faults[:_MAX_FAULTS]:
        print(f"fault: {printable(fault, _MAX_TEXT)}")
    if len(faults) > _MAX_FAULTS:
        print(f"and {len(faults) - _MAX_FAULTS} more (--json lists all)")


def _parameters(description: Path) -> str:
    """Return the parameters of a generated dataset.

    Raises:
        ValueError: if dataset.json has another form.
    """
    values = read_json(description, _MAX_JSON_BYTES)
    parameters = values.get("parameters", {}) if isinstance(values, dict) else None
    if not isinstance(parameters, dict):
        raise ValueError(
            f"{description}: expected a JSON object whose field 'parameters' is an object, got"
            f" {shown(values)}"
        )
    some = itertools.islice(parameters.items(), _MAX_PARAMETERS)
    return ", ".join(
        f"{_name(name)} {_name(value) if isinstance(value, str) else shown(value)}"
        for name, value in some
    )


def _name(text: str) -> str:
    return printable(text, _MAX_NAME)


def _print_histograms(report: DataReport) -> None:
    words: dict[str, list[int]] = {}
    sides: dict[str, list[float]] = {}
    for part in report.parts:
        words.setdefault(part.source, []).extend(part.words)
        sides.setdefault(part.source, []).extend(part.boxes.sides)
    for source, counts in words.items():
        _print_bars(f"words per text, {source}", histogram(counts))
    for source, lengths in sides.items():
        _print_bars(f"box size in pixels (square root of area), {source}", histogram(lengths))
    shorter = [min(size) for images in report.images for size in images.sizes.elements()]
    _print_bars("shorter image side in pixels", histogram(shorter))


def _print_bars(title: str, bars: list[Bar]) -> None:
    if len(bars) < 2:
        # The summary already shows the only value.
        return
    most = max(bar.number for bar in bars)
    names = [f"{b.first}" if b.first == b.last else f"{b.first} to {b.last}" for b in bars]
    width = max(map(len, names))
    print(f"\n{title}")
    for name, bar in zip(names, bars, strict=True):
        marks = "#" * -(-_BAR_WIDTH * bar.number // most)
        print(f"  {name:>{width}}  {marks:<{_BAR_WIDTH}}  {bar.number}")


def _summary(part: PartReport) -> str:
    parts = [f"{part.records} records"]
    if part.words:
        parts.append(f"{min(part.words)} to {max(part.words)} words")
    boxes = part.boxes.to_dict()
    if boxes:
        parts.append(f"{boxes['boxes']} boxes")
    if part.masks:
        parts.append(f"{part.masks} masks")
    if part.phrases:
        parts.append(f"{part.phrases} phrases")
    if part.classes:
        # List the most frequent classes first, and always include the rarest one, since a class
        # without boxes is not learned.
        counts = sorted(part.classes.items(), key=lambda item: -item[1])
        if len(counts) > _MAX_CLASSES:
            shortened = [*counts[: _MAX_CLASSES - 1], None, counts[-1]]
        else:
            shortened = counts
        named = [f"{_name(each[0])} {each[1]}" if each else "..." for each in shortened]
        parts.append(f"{len(counts)} classes ({', '.join(named)})")
    if part.answers:
        common = ", ".join(f"{_name(text)} {count}" for text, count in part.answers.most_common(3))
        parts.append(f"{len(part.answers)} answers ({common}, ...)")
    if part.truths:
        parts.append(f"{part.truths[True]} true, {part.truths[False]} false")
    if boxes:
        parts.append(
            f"{boxes['small']} small, {boxes['medium']} medium, {boxes['large']} large boxes,"
            f" at most {boxes['per_record_most']} per record"
        )
    parts += [counted(count, what) for what, count in sorted(part.counts.items())]
    notes = [printable(note, _MAX_TEXT) for note in part.notes]
    return "; ".join([", ".join(parts), *notes])


def _images(images: ImageReport) -> str:
    statuses, total = images.statuses, images.statuses.total()
    kinds = ", ".join(f"{n} {status}" for status, n in statuses.items() if status != "ok")
    text = f"{total} images, {_sizes(images.sizes)}, {total - statuses['ok']} broken"
    if images.other_sizes:
        text += f", {len(images.other_sizes)} whose size differs from the annotation"
    if images.outside:
        text += f", {counted(len(images.outside), 'records')} with boxes outside the image"
    return f"{text} ({kinds})" if kinds else text


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    if not sizes:
        return "none readable"
    smallest, largest = min(sizes), max(sizes)
    (height, width), _ = sizes.most_common(1)[0]
    if smallest == largest:
        return f"all {width} x {height} pixels"
    heights, widths = [h for h, _ in sizes], [w for _, w in sizes]
    return (
        f"{min(widths)} to {max(widths)} pixels wide, {min(heights)} to {max(heights)} high,"
        f" most often {width} x {height}"
    )
