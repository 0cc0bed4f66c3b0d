"""Records from rows: shared by tables, tar shards and JSON lines.

Texts and boxes are read at once, images on access. Empty captions, repeated captions of an image,
and images without captions are skipped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from fiber.data.formats.annotation_boxes import BOX_SLACK_PIXELS, EMPTY_BOX_PIXELS, is_number
from fiber.data.formats.annotation_file import ReadReport
from fiber.data.formats.rows import RowBox, boxes_of, captions_of, questions_of
from fiber.data.prompts.classes import class_prompt
from fiber.data.record import LazyImages, Record, RecordSequence, StoredImage

#: Returns the image at a location.
ReadImage = Callable[[Any], StoredImage]


class DataRow(NamedTuple):
    """A row of a table, a sample of a shard, or a JSON line."""

    #: File and row, for messages.
    where: str
    #: Prefix of the keys of its records, unique in the set.
    key: str
    values: Mapping[str, Any]
    #: Location of each image.
    locations: tuple[Hashable, ...]


class RowRecords(ReadReport, RecordSequence):
    """Records whose images are read on access."""

    def __init__(self, read: ReadImage) -> None:
        super().__init__()
        self._read = read
        self._fields: list[dict[str, Any]] = []

    def add(self, row: DataRow, **fields: Any) -> None:
        """Add a record of a row, after checking its fields."""
        fields.setdefault("key", row.key)
        fields["locations"] = row.locations
        self._fields.append(fields)
        self._record(-1)

    def __len__(self) -> int:
        return len(self._fields)

    def _record(self, index: int) -> Record:
        fields = dict(self._fields[index])
        return Record(images=LazyImages(self._read, fields.pop("locations")), **fields)


@contextmanager
def named(where: str) -> Iterator[None]:
    """Prefix errors with the location of a row."""
    try:
        yield
    except (ValueError, TypeError, IndexError) as problem:
        raise ValueError(f"{where} {problem}") from None


def caption_records(rows: Iterable[DataRow], read: ReadImage) -> RowRecords:
    """Make a record of each caption.

    Raises:
        ValueError: for an invalid row, with its location.
    """
    out = RowRecords(read)
    for row in rows:
        with named(row.where):
            texts, seen = captions_of(row.values), set()
            one = isinstance(texts, str)
            if not texts and not one:
                out.skip("pictures without captions")
            for place, text in enumerate([texts] if isinstance(texts, str) else texts):
                if not text.strip():
                    out.skip("empty captions")
                elif text in seen:
                    out.skip("repeated captions")
                else:
                    seen.add(text)
                    key = row.key if one else f"{row.key}-{place}"
                    out.add(row, key=key, text=text, image_id=_image_id(row))
    return out


def question_records(rows: Iterable[DataRow], read: ReadImage) -> RowRecords:
    """Make a record of each question; arguments and errors as in `caption_records`."""
    out = RowRecords(read)
    for row in rows:
        with named(row.where):
            for place, asked in enumerate(questions_of(row.values)):
                stem = row.key.rpartition("/")[0]
                several = f"{row.key}-{place}" if "questions" in row.values else row.key
                out.add(
                    row,
                    key=several if asked.number is None else f"{stem}/{asked.number}",
                    text=asked.text,
                    image_id=_image_id(row),
                    answers=asked.scores,
                    human_answers=asked.annotators,
                )
    return out


def box_records(
    rows: Iterable[DataRow],
    read: ReadImage,
    names: Sequence[str] = (),
    *,
    on_error: str = "raise",
    shots: int = 0,
) -> RowRecords:
    """Make a record of each image with its boxes; the text is the prompt of all classes.

    Boxes of at most one pixel in width or height are dropped and counted. Reversed boxes, such as
    those in another format, are an error. Boxes are clipped if the row has the size of its image.

    Args:
        rows: with the fields of `boxes_of`, and optionally `height` and `width`.
        read: returns the image at a location.
        names: class names of numeric categories. String categories are used as they are, in
            alphabetical order.
        on_error: "raise", or "skip": clip boxes that exceed their images, drop reversed ones, and
            count both.
        shots: images per class, in order of the rows; 0: all images.

    Raises:
        ValueError: for an invalid row, with its location.
    """
    out = RowRecords(read)
    known, kept = set(names), []
    counts: Counter[str] = Counter()
    for row in rows:
        with named(row.where):
            size = _image_size(row.values)
            found = _boxes(row.values, size, names, out, on_error == "skip")
            shown = {str(box.category) for box in found}
            known |= shown
            if shots and not any(counts[name] < shots for name in shown):
                continue
            counts.update(shown)
            kept.append((row, size, found))
    out.classes = (*names, *sorted(known - set(names)))
    prompt = class_prompt(out.classes)
    label_index = {name: index for index, name in enumerate(out.classes)}
    for row, size, found in kept:
        own = tuple(label_index[str(box.category)] for box in found)
        with named(row.where):
            out.add(
                row,
                text=prompt.text,
                image_id=_image_id(row),
                image_size=size,
                boxes_xyxy=tuple(box.box_xyxy for box in found),
                char_spans=tuple(prompt.spans[label] for label in own),
                box_labels=own,
                labels=prompt.labels,
                label_spans=prompt.spans,
            )
    return out


def _image_id(row: DataRow) -> str:
    number = row.values.get("image_id")
    return row.key if number is None else str(number)


def _image_size(values: Mapping[str, Any]) -> tuple[int, int] | None:
    size = values.get("height"), values.get("width")
    if all(is_number(side) for side in size):
        return int(size[0]), int(size[1])  # type: ignore[arg-type]
    return None


def _boxes(
    values: Mapping[str, Any],
    size: tuple[int, int] | None,
    names: Sequence[str],
    out: RowRecords,
    skips_errors: bool,
) -> list[RowBox]:
    """Return the boxes of a row, clipped to its image, with the names of their classes."""
    found = []
    for number, (box, category) in enumerate(boxes_of(values)):
        name = category
        if isinstance(category, int):
            if not 0 <= category < len(names):
                raise ValueError(
                    f"has box {number} of class {category}; expected a name, or an index below"
                    f" {len(names)}, the number of class names in the file"
                )
            name = names[category]
        if box[2] < box[0] or box[3] < box[1]:
            if not skips_errors:
                raise ValueError(_reversed(values, number, box))
            out.skip("reversed boxes")
            continue
        clipped = box
        if size is not None:
            height, width = size
            clipped = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height))
            beyond = max(abs(a - b) for a, b in zip(box, clipped, strict=True))
            if beyond > BOX_SLACK_PIXELS and not skips_errors:
                raise ValueError(
                    f"has box {number}, (x0, y0, x1, y1) = {box}, {beyond:g} pixels outside its"
                    f" image of {height} x {width} (height x width)"
                )
        if min(clipped[2] - clipped[0], clipped[3] - clipped[1]) <= EMPTY_BOX_PIXELS:
            out.skip("empty boxes")
            continue
        out.skip("clipped boxes", int(clipped != box))
        found.append(RowBox(clipped, name))
    return found


def _reversed(values: Mapping[str, Any], number: int, box: tuple[float, ...]) -> str:
    """Return the error message for a reversed box, in the format of the row."""
    x0, y0, x1, y1 = box
    if "boxes_xyxy" in values:
        return f"has box {number}, {box}; expected x0 <= x1 and y0 <= y1 (x0, y0, x1, y1)"
    return (
        f"has box {number}, (x, y, width, height) = {(x0, y0, x1 - x0, y1 - y0)}; expected a width"
        " and a height of 0 or more"
    )
