"""Collect dataset statistics and find faults."""

from __future__ import annotations

import hashlib
import operator
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fiber.data.image_file import DEFAULT_LIMITS, STATUSES, CheckedImage, DecodeLimits, check_image
from fiber.data.masks.codec import decode_masks
from fiber.data.masks.mask import IdMap, count_masks
from fiber.data.record import AnyPath, Record, RecordSet, StoredImage
from fiber.data.tools.discover import Part, parts_of
from fiber.data.tools.verify import verify_files
from fiber.messages import printable
from fiber.messages import shown as shown_value

#: COCO's area limits for small and large boxes, in square pixels.
SMALL_PIXELS, LARGE_PIXELS = 32**2, 96**2
#: Maximum number of pixels by which boxes may exceed their image, as in the readers.
SLACK_PIXELS = 1
#: Maximum number of characters of a path in a message.
MAX_PATH = 500
#: Maximum number of bars in a histogram.
_BARS = 8
#: Number of images per core submitted to the thread pool at once.
_IMAGES_PER_CORE = 4


class Bar(NamedTuple):
    """Number of values in an inclusive range of integers."""

    first: int
    last: int
    number: int


def histogram(values: Iterable[float]) -> list[Bar]:
    """Count values (rounded down) in at most eight bins of the same width."""
    whole = [int(value) for value in values]
    if not whole:
        return []
    least, most = min(whole), max(whole)
    # Round widths: 1, 2 or 5 times a power of ten.
    widths = (step * 10**power for power in range(20) for step in (1, 2, 5))
    width = next(w for w in widths if most // w - least // w < _BARS)
    bars = Counter(value // width for value in whole)
    return [
        Bar(number * width, number * width + width - 1, bars[number])
        for number in range(least // width, most // width + 1)
    ]


@dataclass
class BoxCounts:
    """Statistics of the boxes of a set of records."""

    #: Number of boxes of each record.
    per_record: list[int] = field(default_factory=list)
    #: Square root of the area of each box in pixels.
    sides: list[float] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Add the boxes of a record."""
        self.per_record.append(len(record.boxes_xyxy))
        for x0, y0, x1, y1 in record.boxes_xyxy:
            self.sides.append(max((x1 - x0) * (y1 - y0), 0.0) ** 0.5)

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as a JSON-serializable dict (empty if there are no boxes)."""
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
    """Statistics of one source and split."""

    source: str
    split: str
    records: int = 0
    #: Number of words of each text.
    words: list[int] = field(default_factory=list)
    boxes: BoxCounts = field(default_factory=BoxCounts)
    #: Number of masks and of phrases with masks.
    masks: int = 0
    phrases: int = 0
    #: Masks that cannot be decoded, as sentences.
    bad_masks: list[str] = field(default_factory=list)
    #: Frequency of each class (in class order), answer and truth value.
    classes: dict[str, int] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    truths: Counter[bool] = field(default_factory=Counter)
    #: Number of entries that were skipped or changed, and the reader's notes.
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    #: Why the part could not be read; "" if it was read.
    fault: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as a JSON-serializable dict."""
        return {
            "source": self.source,
            "split": self.split,
            "records": self.records,
            "words": [bar._asdict() for bar in histogram(self.words)],
            "boxes": self.boxes.to_dict(),
            **({"masks": self.masks, "phrases": self.phrases} if self.masks else {}),
            "classes": self.classes,
            "answers": dict(self.answers.most_common()),
            "truths": {str(truth).lower(): count for truth, count in self.truths.items()},
            "left_out": self.counts,
            "notes": self.notes,
            "fault": self.fault or None,
        }


@dataclass
class ImageReport:
    """Statistics of the images in a split, each counted once."""

    split: str
    #: Frequency of each (height, width).
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    #: Frequency of each of `STATUSES`.
    statuses: Counter[str] = field(default_factory=Counter)
    #: "picture", "status" and "reason" of images that are not "ok".
    broken: list[dict[str, Any]] = field(default_factory=list)
    #: "picture", "size" and "annotated" size, both (height, width), of images where they differ.
    other_sizes: list[dict[str, Any]] = field(default_factory=list)
    #: "picture", "record", "size", and "pixels" by which its boxes exceed the image.
    outside: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as a JSON-serializable dict, with sizes as (height, width)."""
        sides = Counter[int]()
        for size, count in self.sizes.items():
            sides[min(size)] += count
        return {
            "split": self.split,
            "pictures": self.statuses.total(),
            "statuses": {status: self.statuses[status] for status in STATUSES},
            "sizes": [[*size, count] for size, count in self.sizes.most_common()],
            "shorter_side_pixels": [bar._asdict() for bar in histogram(sides.elements())],
            "broken": self.broken,
            "other_sizes": self.other_sizes,
            "boxes_outside": [{**box, "pixels": round(box["pixels"], 2)} for box in self.outside],
        }


@dataclass
class DataReport:
    """Result of `inspect`."""

    source: str
    parts: list[PartReport] = field(default_factory=list)
    images: list[ImageReport] = field(default_factory=list)
    #: Number of files whose checksums were compared; None if this was not asked for.
    verified: int | None = None
    #: Files of a packed folder that have changed, as sentences.
    changed: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """Faults found, as sentences."""
        faults = [*self.changed, *(part.fault for part in self.parts if part.fault)]
        faults += (fault for part in self.parts for fault in part.bad_masks)
        for images in self.images:
            for name, status, reason in map(dict.values, images.broken):
                fault = reason if status == "missing" else f"is {status}: {reason}"
                faults.append(f"image {printable(name, MAX_PATH)} {fault}")
            for name, (height, width), annotated in map(dict.values, images.other_sizes):
                rotated = " (transposed)" if [width, height] == annotated else ""
                faults.append(
                    f"image {printable(name, MAX_PATH)} is {width} x {height} pixels, but its"
                    f" annotation says {annotated[1]} x {annotated[0]}{rotated}, so its boxes do"
                    " not fit"
                )
            for _, key, (height, width), pixels in map(dict.values, images.outside):
                faults.append(
                    f"record {shown_value(key)}: a box exceeds its image of {width} x {height}"
                    f" pixels by {pixels:.6g} pixels; expected at most {SLACK_PIXELS}"
                )
        return faults

    def to_dict(self) -> dict[str, Any]:
        """Return the whole report as a JSON-serializable dict."""
        return {
            "source": self.source,
            "parts": [part.to_dict() for part in self.parts],
            "pictures": [images.to_dict() for images in self.images],
            "files_verified": self.verified,
            "faults": self.faults,
        }


def inspect(
    data: AnyPath,
    splits: Sequence[str] = (),
    *,
    verify: bool = False,
    shown: Callable[[Part, RecordSet], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    limits: DecodeLimits = DEFAULT_LIMITS,
) -> DataReport:
    """Read all records and decode all images of a folder or a file, and return a report.

    Args:
        data: folder or file.
        splits: splits to read; default: all.
        verify: also read every file of a packed folder and compare its SHA-256 checksum.
        shown: called with each readable part and its records.
        progress: called with (decoded images, total images) for each split.
        limits: limits of decoding one image.

    Raises:
        FileNotFoundError: if the folder or file does not exist.
        ValueError: if it contains no known data, or lacks one of `splits`, or if `verify` is set
            and it is not a packed folder.
    """
    parts, report = parts_of(data, splits), DataReport(str(data))
    if verify:
        report.verified, report.changed = verify_files(Path(data), splits)
    for split in dict.fromkeys(part.split for part in parts):
        images: dict[Any, _Image] = {}
        for part in (part for part in parts if part.split == split):
            one = PartReport(part.source, split)
            report.parts.append(one)
            try:
                records = part.open()
                _count(one, records, images)
            except (ValueError, OSError) as problem:
                one.fault = _message(problem)
                continue
            if shown is not None:
                shown(part, records)
        report.images.append(_check_images(split, list(images.values()), progress, limits))
    return report


def _message(problem: Exception) -> str:
    if isinstance(problem, OSError) and problem.strerror and problem.filename is not None:
        return f"{os.fspath(problem.filename)}: {problem.strerror}"
    return str(problem)


def _count(out: PartReport, records: RecordSet, images: dict[Any, _Image]) -> None:
    classes = getattr(records, "classes", ())
    class_counts: Counter[str] = Counter()
    for index in range(len(records)):
        record = records[index]
        out.words.append(len(record.text.split()))
        out.boxes.add(record)
        out.masks += count_masks(record.masks)
        if record.masks and record.image_size is not None:
            try:
                decode_masks(record.masks, *record.image_size)
            except (ValueError, OSError) as problem:
                out.bad_masks.append(f"record {shown_value(record.key)}: {_message(problem)}")
        out.phrases += len(record.phrases)
        if classes:
            # A map of classes does not tell which of them an image shows.
            is_known = not (isinstance(record.masks, IdMap) and record.masks.may_lack)
            labels = record.box_labels or (record.mask_labels if is_known else ())
            class_counts.update(record.labels[label] for label in labels)
        if record.answers:
            answers = record.answers
            out.answers[max(answers, key=lambda answer: answers[answer])] += 1
        if record.truth is not None:
            out.truths[record.truth] += 1
        _add_images(images, record)
    out.records = len(records)
    out.classes = {name: class_counts[name] for name in classes}
    # Copy the counts last, since some readers count while records are read.
    out.counts = dict(getattr(records, "counts", {}))
    out.notes = list(getattr(records, "notes", ()))


class _Image(NamedTuple):
    """An image and its annotations."""

    name: str
    read: Callable[[], StoredImage]
    #: Each annotated (height, width).
    annotated: set[tuple[int, int]]
    #: Bounding box (x0, y0, x1, y1) of each record's boxes, by record key.
    bounds: dict[str, tuple[float, float, float, float]]


def _add_images(images: dict[Any, _Image], record: Record) -> None:
    """Add the images and annotations of a record."""
    stored: Any = record.images
    for index in range(len(stored)):
        # Identify lazy images without reading them.
        key = stored[index] if isinstance(stored, tuple) else (stored, index)
        name = f"of record {shown_value(record.key)}"
        if isinstance(key, str | os.PathLike):
            key = name = os.fspath(key)
        if key not in images:
            images[key] = _Image(name, partial(operator.getitem, stored, index), set(), {})
        if record.image_size:
            images[key].annotated.add(record.image_size)
        if record.boxes_xyxy:
            x0, y0, x1, y1 = zip(*record.boxes_xyxy, strict=True)
            images[key].bounds[record.key] = (min(x0), min(y0), max(x1), max(y1))


def _check_images(
    split: str,
    images: list[_Image],
    progress: Callable[[int, int], None] | None,
    limits: DecodeLimits,
) -> ImageReport:
    """Decode all images of a split."""
    report, seen = ImageReport(split), set[bytes | str]()
    for number, (image, identity, checked) in enumerate(_in_threads(images, limits), 1):
        if progress is not None:
            progress(number, len(images))
        # Several sources in a file share the same images, with different annotations.
        is_new = identity is None or identity not in seen
        if identity is not None:
            seen.add(identity)
        report.statuses[checked.status] += is_new
        if checked.size is not None:
            report.sizes[checked.size] += is_new
            _compare(report, image, checked.size)
        elif is_new:
            broken = {"picture": image.name, "status": checked.status, "reason": checked.reason}
            report.broken.append(broken)
    return report


def _compare(report: ImageReport, image: _Image, size: tuple[int, int]) -> None:
    """Compare the annotations of an image against its size."""
    entry = {"picture": image.name, "size": list(size)}
    others = sorted(image.annotated - {size})
    report.other_sizes += [{**entry, "annotated": list(annotated)} for annotated in others]
    for key, (x0, y0, x1, y1) in image.bounds.items():
        beyond = max(-x0, -y0, x1 - size[1], y1 - size[0])
        # A wrong size has already been reported.
        if beyond > SLACK_PIXELS and not others:
            box = {"picture": image.name, "record": key, "size": list(size), "pixels": beyond}
            report.outside.append(box)


def _in_threads(
    images: list[_Image], limits: DecodeLimits
) -> Iterator[tuple[_Image, bytes | str | None, CheckedImage]]:
    """Decode images on all cores, a bounded number at a time. Yield each with their identity."""

    def check(image: _Image) -> tuple[_Image, bytes | str | None, CheckedImage]:
        try:
            stored = image.read()
        except (ValueError, OSError) as problem:
            return image, None, CheckedImage("missing", f"cannot be read: {_message(problem)}")
        is_bytes = isinstance(stored, bytes)
        identity = hashlib.sha256(stored).digest() if is_bytes else os.path.realpath(stored)
        return image, identity, check_image(stored, **limits._asdict())

    with ThreadPoolExecutor() as pool:
        step = _IMAGES_PER_CORE * (os.cpu_count() or 1)
        for start in range(0, len(images), step):
            yield from pool.map(check, images[start : start + step])
