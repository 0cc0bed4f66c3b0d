"""Create records from rows of tables, tar shards and JSON lines.

Texts and boxes are read up front; images are read on access. Empty captions, repeated captions of
an image, and images without captions are skipped and counted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fiber.data.formats.annotation_boxes import (
    BOX_SLACK_PIXELS,
    CLIP_HINT,
    EMPTY_BOX_PIXELS,
    Box,
    UnitBoxes,
    clip_box,
    corners_hint,
)
from fiber.data.formats.annotation_file import ReadReport, named
from fiber.data.formats.json_values import is_number
from fiber.data.formats.rows import boxes_of, captions_of, check_id, questions_of
from fiber.data.prompts.classes import class_prompt, clean_class_name
from fiber.data.record import MAX_SIDE, LazyImages, Record, RecordSequence, StoredImage
from fiber.messages import shown


class DataRow(NamedTuple):
    """A row of a table, a sample of a shard, or a JSON line."""

    #: File and row, for messages.
    where: str
    #: Prefix of the row's record keys, unique in the dataset.
    key: str
    values: Mapping[str, Any]
    #: Location of each image.
    locations: tuple[Hashable, ...]


class RowSource(ReadReport, ABC):
    """Base class of files read as one sequence of rows.

    The report is complete once all rows have been read.
    """

    #: How the names of numeric categories are given, other than as categories, for messages.
    class_names_hint = ""

    @property
    def class_names(self) -> Sequence[str]:
        """Class names of numeric categories."""
        return ()

    @abstractmethod
    def rows(self, kind: str) -> Iterator[DataRow]:
        """Yield the rows of the given kind, which is a key of `rows.FIELDS`.

        Raises:
            ValueError: if the files have no such rows.
        """

    @abstractmethod
    def image(self, location: Any, /) -> StoredImage:
        """Read the image at a location. Must be thread-safe."""


class RowRecords(ReadReport, RecordSequence):
    """Records whose images are read on access."""

    def __init__(self, source: RowSource) -> None:
        super().__init__()
        self._read = source.image
        self._fields: list[dict[str, Any]] = []

    def add(self, row: DataRow, **fields: Any) -> None:
        """Append a record of a row, checking its fields."""
        fields.setdefault("key", row.key)
        fields["locations"] = row.locations
        self._fields.append(fields)
        self._record(-1)

    def __len__(self) -> int:
        return len(self._fields)

    def _record(self, index: int) -> Record:
        fields = dict(self._fields[index])
        return Record(images=LazyImages(self._read, fields.pop("locations")), **fields)


def caption_records(source: RowSource) -> RowRecords:
    """Create a record for each caption.

    Raises:
        ValueError: if a row is invalid; the error gives its location.
    """
    out = RowRecords(source)
    for row in source.rows("captions"):
        with named(row.where):
            texts, seen = captions_of(row.values), set()
            one = isinstance(texts, str)
            if not texts and not one:
                out.skip("pictures without captions")
            for index, text in enumerate([texts] if isinstance(texts, str) else texts):
                if not text.strip():
                    out.skip("empty captions")
                elif text in seen:
                    out.skip("repeated captions")
                else:
                    seen.add(text)
                    key = row.key if one else f"{row.key}-{index}"
                    out.add(row, key=key, text=text, image_id=_image_id(row))
    out.add_report(source)
    return out


def question_records(source: RowSource) -> RowRecords:
    """Create a record for each question, with answers if there are any.

    Raises:
        ValueError: if a row is invalid; the error gives its location.
    """
    out = RowRecords(source)
    for row in source.rows("questions"):
        with named(row.where):
            for index, (number, fields) in enumerate(questions_of(row.values)):
                key = f"{row.key}-{index}" if "questions" in row.values else row.key
                if number is not None:
                    key = f"{row.key.rpartition('/')[0]}/{number}"
                out.add(row, key=key, image_id=_image_id(row), **fields)
    out.add_report(source)
    return out


def box_records(
    source: RowSource,
    *,
    on_error: str = "raise",
    shots: int = 0,
    objects: bool = False,
    masks: bool = False,
) -> RowRecords:
    """Create a record for each image and its boxes. The text is the prompt of all classes.

    Numeric categories are indices into `source.class_names`; string categories are class names,
    sorted alphabetically. Boxes of at most one pixel in width or height are dropped and counted.
    Boxes are clipped if the row gives the image size. `shots` is the number of images per class, in
    row order; 0 means all images. `objects` has no effect: there are no crowd boxes, so metrics use
    the boxes themselves; nor has `masks`, of which there are none.

    Reversed boxes (probably in the wrong format) and boxes that exceed their images raise an error.
    If `on_error` is "skip", reversed boxes are dropped, boxes that exceed their images are clipped,
    and both are counted.

    Raises:
        ValueError: if a row is invalid; the error gives its location.
    """
    out, names = RowRecords(source), source.class_names
    known, kept = set(names), list[Any]()
    counts: Counter[str] = Counter()
    reader = _BoxReader(source, out, on_error == "skip")
    unit = UnitBoxes()
    for row in source.rows("boxes"):
        with named(row.where):
            size, given = _image_size(row.values), list(boxes_of(row.values))
            for box, _ in given:
                unit.add(box, min(box[2] - box[0], box[3] - box[1]), (row.where, box))
            found = reader.kept(given, size, is_xyxy="boxes_xyxy" in row.values)
            classes = {name for _, name in found}
            for name in classes - known:
                if not clean_class_name(name).strip():
                    raise ValueError(f"has class {shown(name)}; expected a name with words")
            known |= classes
            if shots and not any(counts[name] < shots for name in classes):
                continue
            counts.update(classes)
            kept.append((row, size, found))
    if unit.look_normalized:
        where, box = unit.first
        raise ValueError(f"{where} has box (x0, y0, x1, y1) = {box}, {unit.problem('boxes')}")
    out.classes = (*names, *sorted(known - set(names)))
    prompt = class_prompt(out.classes)
    label_index = {name: index for index, name in enumerate(out.classes)}
    for row, size, found in kept:
        fields = prompt.record_fields(
            (box for box, _ in found), [label_index[name] for _, name in found]
        )
        with named(row.where):
            out.add(row, image_id=_image_id(row), image_size=size, **fields)
    out.add_report(source)
    return out


def _image_id(row: DataRow) -> str:
    number = row.values.get("image_id")
    return row.key if number is None else str(check_id(number, "image_id"))


def _image_size(values: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (height, width) of a row, or None if a side is missing, null or 0."""
    size = values.get("height"), values.get("width")
    if any(side is None or side == 0 for side in size):
        return None
    # Tables may have floats.
    if not all(is_number(side) and 1 <= side <= MAX_SIDE and side % 1 == 0 for side in size):
        raise ValueError(
            f"has height {shown(size[0])} and width {shown(size[1])}; expected pixels, whole"
            f" numbers from 1 to {MAX_SIDE:,}"
        )
    return int(size[0]), int(size[1])  # type: ignore[arg-type]


class _BoxReader:
    """Checks of the boxes of a row."""

    def __init__(self, source: RowSource, out: RowRecords, skips_errors: bool) -> None:
        self._names, self._names_hint = source.class_names, source.class_names_hint
        self._out, self._skips_errors = out, skips_errors

    def kept(
        self,
        given: Sequence[tuple[Box, str | int]],
        size: tuple[int, int] | None,
        *,
        is_xyxy: bool,
    ) -> list[tuple[Box, str]]:
        """Return the boxes of a row, clipped to the image, with their class names."""
        found, out = [], self._out
        for number, (box, category) in enumerate(given):
            name = self._name(number, category)
            x0, y0, x1, y1 = box
            if x1 < x0 or y1 < y0:
                if not self._skips_errors:
                    raise ValueError(f"has box {number}, {_reversed_problem(box, is_xyxy)}")
                out.skip("reversed boxes")
                continue
            clipped, beyond = (box, 0.0) if size is None else clip_box(box, size)
            if size is not None and beyond > BOX_SLACK_PIXELS and not self._skips_errors:
                hint = "" if is_xyxy else corners_hint((x0, y0, x1 - x0, y1 - y0), size)
                hint = hint or CLIP_HINT
                raise ValueError(
                    f"has box {number}, (x0, y0, x1, y1) = {box}, which extends {beyond:g} pixels"
                    f" beyond its image of {size[0]} x {size[1]} (height x width){hint}"
                )
            if min(clipped[2] - clipped[0], clipped[3] - clipped[1]) <= EMPTY_BOX_PIXELS:
                out.skip("empty boxes")
                continue
            out.skip("clipped boxes", int(beyond > 0))
            found.append((clipped, name))
        return found

    def _name(self, number: int, category: str | int) -> str:
        """Return the name of a class."""
        names = self._names
        if isinstance(category, str):
            return category
        if not names:
            raise ValueError(
                f"has box {number} with class {shown(category)}, but the names of the classes are"
                " unknown; expected names such as 'dog' instead of numbers"
                f"{self._names_hint}"
            )
        if not 0 <= category < len(names):
            raise ValueError(
                f"has box {number} with class {shown(category)}; expected a name or an index below"
                f" {len(names)}"
            )
        return names[category]


def _reversed_problem(box: Box, is_xyxy: bool) -> str:
    x0, y0, x1, y1 = box
    if is_xyxy:
        return (
            f"(x0, y0, x1, y1) = {box}; expected x0 <= x1 and y0 <= y1 (if it is x, y, width,"
            f" height, write {[x0, y0, x0 + x1, y0 + y1]})"
        )
    return (
        f"(x, y, width, height) = {(x0, y0, x1 - x0, y1 - y0)}; expected a nonnegative width and"
        " height"
    )
