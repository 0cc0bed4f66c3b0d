"""Looking into data: what is there, how long and how large, and what is broken."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, NamedTuple

from fiber.data.image_file import STATUSES, CheckedPicture, check_picture
from fiber.data.record import Record, RecordSet, StoredImage
from fiber.data.tools.discover import Part, parts_of

AnyPath = str | PathLike[str]

#: COCO's bounds of small and of large boxes, in square pixels.
SMALL_PIXELS, LARGE_PIXELS = 32**2, 96**2
#: How far boxes may reach outside of their picture, in pixels: what the loader takes, too.
SLACK_PIXELS = 1
#: Bars of a histogram at most.
_BARS = 8
#: Pictures that are decoded before their results are taken, for each thread.
_AHEAD = 4


class Bar(NamedTuple):
    """How many values lie in a range of whole numbers, both ends counted in."""

    first: int
    last: int
    number: int


def histogram(values: Iterable[float]) -> list[Bar]:
    """Count values, rounded down, in up to eight ranges of the same width; none of no values."""
    counts = Counter(int(value) for value in values)
    if not counts:
        return []
    least, most = min(counts), max(counts)
    # Widths that people count in: 1, 2 or 5 times a power of ten.
    widths = (step * 10**power for power in range(12) for step in (1, 2, 5))
    width = next(w for w in widths if most // w - least // w < _BARS)
    bars = Counter[int]()
    for value, count in counts.items():
        bars[value // width] += count
    return [
        Bar(place * width, place * width + width - 1, bars[place])
        for place in range(least // width, most // width + 1)
    ]


@dataclass
class BoxCounts:
    """Numbers about the boxes of some records."""

    #: Boxes of each record.
    per_record: list[int] = field(default_factory=list)
    #: Square root of the area of each box in pixels.
    sides: list[float] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Count the boxes of a record."""
        self.per_record.append(len(record.boxes_xyxy))
        for x0, y0, x1, y1 in record.boxes_xyxy:
            self.sides.append(max((x1 - x0) * (y1 - y0), 0.0) ** 0.5)

    def to_dict(self) -> dict[str, Any]:
        """Give the numbers for JSON; {} where there are no boxes."""
        if not self.sides:
            return {}
        areas = [side**2 for side in self.sides]
        small = sum(area < SMALL_PIXELS for area in areas)
        large = sum(area >= LARGE_PIXELS for area in areas)
        return {
            "boxes": len(areas),
            "records_without": self.per_record.count(0),
            "per_record_median": statistics.median(self.per_record),
            "per_record_most": max(self.per_record),
            "side_pixels_median": round(statistics.median(self.sides), 1),
            "small": small,
            "medium": len(areas) - small - large,
            "large": large,
        }


@dataclass
class PartReport:
    """What one source and split holds."""

    source: str
    split: str
    records: int = 0
    #: Words of each text.
    words: list[int] = field(default_factory=list)
    boxes: BoxCounts = field(default_factory=BoxCounts)
    #: How often each class, answer and truth occurs; classes in their order.
    classes: dict[str, int] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    truths: Counter[bool] = field(default_factory=Counter)
    #: What was left out or changed, and what else was told.
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    #: Why it could not be read; "" if it could.
    fault: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Give what is known for JSON."""
        return {
            "source": self.source,
            "split": self.split,
            "records": self.records,
            "words": [bar._asdict() for bar in histogram(self.words)],
            "boxes": self.boxes.to_dict(),
            "classes": self.classes,
            "answers": dict(self.answers.most_common()),
            "truths": {str(truth).lower(): count for truth, count in self.truths.items()},
            "left_out": self.counts,
            "notes": self.notes,
            "fault": self.fault or None,
        }


@dataclass
class PictureReport:
    """What the pictures of a split are; each is looked at once."""

    split: str
    #: How often each (height, width) occurs.
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    #: How often each of `STATUSES` occurs.
    statuses: Counter[str] = field(default_factory=Counter)
    #: (picture, status, reason) of those that are not "ok".
    broken: list[tuple[str, str, str]] = field(default_factory=list)
    #: (picture, its (height, width), that which an annotation tells) where the two differ.
    other_sizes: list[tuple[str, tuple[int, int], tuple[int, int]]] = field(default_factory=list)
    #: (picture, record, its (height, width), pixels) where boxes reach that far outside.
    outside: list[tuple[str, str, tuple[int, int], float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Give what is known for JSON; sizes are (height, width)."""
        sides = Counter[int]()
        for size, count in self.sizes.items():
            sides[min(size)] += count
        return {
            "split": self.split,
            "pictures": self.statuses.total(),
            "statuses": {status: self.statuses[status] for status in STATUSES},
            "sizes": [[*size, count] for size, count in self.sizes.most_common()],
            "shorter_side_pixels": [bar._asdict() for bar in histogram(sides.elements())],
            "broken": [
                {"picture": name, "status": status, "reason": reason}
                for name, status, reason in self.broken
            ],
            "other_sizes": [
                {"picture": name, "size": list(size), "annotated": list(told)}
                for name, size, told in self.other_sizes
            ],
            "boxes_outside": [
                {"picture": name, "record": key, "size": list(size), "pixels": round(pixels, 2)}
                for name, key, size, pixels in self.outside
            ],
        }


@dataclass
class Report:
    """Everything that was found."""

    source: str
    parts: list[PartReport] = field(default_factory=list)
    pictures: list[PictureReport] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """What is wrong, in sentences."""
        found = [part.fault for part in self.parts if part.fault]
        for pictures in self.pictures:
            for name, status, reason in pictures.broken:
                said = reason if status == "missing" else f"is {status}: {reason}"
                found.append(f"picture {name} {said}")
            for name, size, told in pictures.other_sizes:
                turned = ", as if it were turned" if size == told[::-1] else ""
                found.append(
                    f"picture {name} is {size[1]} x {size[0]} pixels, its annotation says"
                    f" {told[1]} x {told[0]}{turned}; its boxes belong to another size"
                )
            for _, key, size, pixels in pictures.outside:
                found.append(
                    f"record {key!r}: a box reaches {pixels:.6g} pixels outside of its picture,"
                    f" which is {size[1]} x {size[0]} pixels; expected at most {SLACK_PIXELS}"
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Give everything for JSON."""
        return {
            "source": self.source,
            "parts": [part.to_dict() for part in self.parts],
            "pictures": [pictures.to_dict() for pictures in self.pictures],
            "faults": self.faults,
        }


def inspect(
    data: AnyPath,
    splits: Sequence[str] = (),
    *,
    shown: Callable[[Part, RecordSet], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Read all records and decode all pictures.

    Args:
        data: a folder or a file.
        splits: those that are looked into; by default all.
        shown: called with the records of each part that can be read.
        progress: called with (pictures decoded, pictures in all) of each split.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: if it holds nothing that is known, or not the splits.
    """
    found = parts_of(data)
    have = list(dict.fromkeys(part.split for part in found))
    missing = [split for split in splits if split not in have]
    if missing:
        raise ValueError(f"{data} has no split {', '.join(missing)}; it has {', '.join(have)}")
    report = Report(str(data))
    for split in have:
        if splits and split not in splits:
            continue
        pictures = _Pictures()
        for part in (part for part in found if part.split == split):
            one = PartReport(part.source, split)
            report.parts.append(one)
            try:
                records = part.open()
                _count(one, records, pictures)
            except (ValueError, OSError) as problem:
                one.fault = _said(problem)
                continue
            if shown is not None:
                shown(part, records)
        report.pictures.append(pictures.check(split, progress))
    return report


def _said(problem: Exception) -> str:
    if isinstance(problem, OSError) and problem.strerror and problem.filename is not None:
        return f"{os.fspath(problem.filename)}: {problem.strerror}"
    return str(problem)


def _count(out: PartReport, records: RecordSet, pictures: _Pictures) -> None:
    classes = getattr(records, "classes", ())
    of_classes: Counter[str] = Counter()
    for index in range(len(records)):
        record = records[index]
        out.words.append(len(record.text.split()))
        out.boxes.add(record)
        if classes:
            of_classes.update(record.labels[label] for label in record.box_labels)
        if record.answers:
            answers = record.answers
            out.answers[max(answers, key=lambda answer: answers[answer])] += 1
        if record.truth is not None:
            out.truths[record.truth] += 1
        pictures.add(record)
    out.records = len(records)
    out.classes = {name: of_classes[name] for name in classes}
    # Some readers count while records are read.
    out.counts = dict(getattr(records, "counts", {}))
    out.notes = list(getattr(records, "notes", ()))


class _Shown(NamedTuple):
    """A picture, and what records say of it."""

    name: str
    read: Callable[[], StoredImage]
    #: Each (height, width) that annotations tell.
    told: set[tuple[int, int]]
    #: What all boxes of a record cover, as (x0, y0, x1, y1), by its key.
    covered: dict[str, tuple[float, float, float, float]]


class _Pictures:
    """The different pictures of a split."""

    def __init__(self) -> None:
        self._found: dict[Any, _Shown] = {}

    def add(self, record: Record) -> None:
        """Note the pictures of a record, and what it says of them."""
        if not isinstance(record.images, tuple):
            # They are told apart without being read.
            for place in range(len(record.images)):
                self._add((record.images, place), record, place, f"of record {record.key!r}")
            return
        for place, image in enumerate(record.images):
            name = f"of record {record.key!r}" if isinstance(image, bytes) else os.fspath(image)
            key = image if isinstance(image, bytes) else name
            self._add(key, record, place, name)

    def _add(self, key: Any, record: Record, place: int, name: str) -> None:
        if key not in self._found:
            images = record.images
            self._found[key] = _Shown(name, lambda: images[place], set(), {})
        shown = self._found[key]
        if record.image_size:
            shown.told.add(record.image_size)
        if record.boxes_xyxy:
            x0, y0, x1, y1 = zip(*record.boxes_xyxy, strict=True)
            shown.covered[record.key] = (min(x0), min(y0), max(x1), max(y1))

    def check(
        self, split: str, progress: Callable[[int, int], None] | None = None
    ) -> PictureReport:
        """Decode them all."""
        report, seen = PictureReport(split), set[bytes | str]()
        done = enumerate(_in_threads(list(self._found.values())), 1)
        for number, (shown, identity, checked) in done:
            if progress is not None:
                progress(number, len(self._found))
            # Sources that are read from one file show the same picture, and say different things.
            is_new = identity is None or identity not in seen
            if identity is not None:
                seen.add(identity)
            if is_new:
                report.statuses[checked.status] += 1
            if checked.size is not None:
                report.sizes[checked.size] += is_new
                _compare(report, shown, checked.size)
            elif is_new:
                report.broken.append((shown.name, checked.status, checked.reason))
        return report


def _compare(report: PictureReport, shown: _Shown, size: tuple[int, int]) -> None:
    """Note what records say of a picture that is not so."""
    others = sorted(shown.told - {size})
    report.other_sizes.extend((shown.name, size, told) for told in others)
    for key, (x0, y0, x1, y1) in shown.covered.items():
        beyond = max(-x0, -y0, x1 - size[1], y1 - size[0])
        # Boxes of another size are told of already.
        if beyond > SLACK_PIXELS and not others:
            report.outside.append((shown.name, key, size, beyond))


def _in_threads(
    pictures: list[_Shown],
) -> Iterator[tuple[_Shown, bytes | str | None, CheckedPicture]]:
    """Decode pictures on all cores, a bounded number ahead; with what tells them apart."""

    def check(shown: _Shown) -> tuple[_Shown, bytes | str | None, CheckedPicture]:
        try:
            stored = shown.read()
        except (ValueError, OSError) as problem:
            return shown, None, CheckedPicture("missing", f"cannot be read: {_said(problem)}")
        is_bytes = isinstance(stored, bytes)
        identity = hashlib.sha256(stored).digest() if is_bytes else os.path.realpath(stored)
        return shown, identity, check_picture(stored)

    with ThreadPoolExecutor() as pool:
        step = _AHEAD * (os.cpu_count() or 1)
        for start in range(0, len(pictures), step):
            yield from pool.map(check, pictures[start : start + step])
