"""Records of rows: what tables and tar shards have in common once their rows are found.

Texts and boxes are read at once, pictures when a record's are looked at. Empty captions, captions
that repeat one of the same picture, and pictures without captions are left out and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, overload

from fiber.data.formats.annotation_boxes import BOX_SLACK_PIXELS, EMPTY_BOX_PIXELS, is_number
from fiber.data.formats.rows import Boxed, boxes_of, captions_of, questions_of
from fiber.data.prompts.classes import class_prompt
from fiber.data.record import Record, StoredImage, StoredPictures

#: Gives the picture of a place.
ReadPicture = Callable[[Any], StoredImage]


class Row(NamedTuple):
    """A row of a table, or a sample of a shard."""

    #: File and row, for messages.
    where: str
    #: What keys of its records begin with, unique in the set.
    key: str
    values: Mapping[str, Any]
    #: Where its pictures are read.
    places: tuple[Hashable, ...]


class RowRecords(Sequence[Record]):
    """Records whose pictures are read when they are looked at.

    Attributes:
        counts: what was left out.
        notes: what else is to be told.
        classes: names of the classes that boxes have.
    """

    def __init__(self, read: ReadPicture) -> None:
        self.counts: dict[str, int] = {}
        self.notes: list[str] = []
        self.classes: tuple[str, ...] = ()
        self._read = read
        self._fields: list[dict[str, Any]] = []

    def leave_out(self, what: str, times: int = 1) -> None:
        """Count something that is left out or changed."""
        if times:
            self.counts[what] = self.counts.get(what, 0) + times

    def add(self, row: Row, **fields: Any) -> None:
        """Add a record of a row; it is made once to be checked."""
        fields.setdefault("key", row.key)
        fields["places"] = row.places
        self._fields.append(fields)
        self._make(fields)

    def __len__(self) -> int:
        return len(self._fields)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._make(self._fields[index])

    def _make(self, fields: dict[str, Any]) -> Record:
        others = {name: value for name, value in fields.items() if name != "places"}
        return Record(images=StoredPictures(self._read, fields["places"]), **others)


@contextmanager
def named(where: str) -> Iterator[None]:
    """Let errors about a row say where it stands."""
    try:
        yield
    except (ValueError, TypeError, IndexError) as problem:
        raise ValueError(f"{where} {problem}") from None


def caption_records(rows: Iterable[Row], read: ReadPicture) -> RowRecords:
    """Make a record of each caption.

    Raises:
        ValueError: for a row that is not as expected, with where it stands.
    """
    out = RowRecords(read)
    for row in rows:
        with named(row.where):
            texts, seen = captions_of(row.values), set()
            one = isinstance(texts, str)
            if not texts and not one:
                out.leave_out("pictures without captions")
            for place, text in enumerate([texts] if isinstance(texts, str) else texts):
                if not text.strip():
                    out.leave_out("empty captions")
                elif text in seen:
                    out.leave_out("repeated captions")
                else:
                    seen.add(text)
                    key = row.key if one else f"{row.key}-{place}"
                    out.add(row, key=key, text=text, image_id=_image_id(row))
    return out


def question_records(rows: Iterable[Row], read: ReadPicture) -> RowRecords:
    """Make a record of each question; arguments and errors are those of `caption_records`."""
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
                    human_answers=asked.people,
                )
    return out


def box_records(
    rows: Iterable[Row],
    read: ReadPicture,
    names: Sequence[str] = (),
    *,
    on_error: str = "raise",
    shots: int = 0,
) -> RowRecords:
    """Make a record of each picture with its boxes; the text is the prompt of all classes.

    Boxes no wider or higher than a pixel are left out and counted; reversed ones, such as those
    that were written in another form, are an error. Where a row tells the size of its picture,
    boxes are cut to it.

    Args:
        rows: with the fields that `boxes_of` reads, and `height` and `width` if they have them.
        read: gives pictures.
        names: of the classes that numbers stand for; names in the rows are used as they are, in
            alphabetical order.
        on_error: "raise", or "skip": boxes outside their pictures are cut, reversed ones left out,
            and both counted.
        shots: pictures of each class, in the order of the rows; 0: all pictures.

    Raises:
        ValueError: for a row that is not as expected, with where it stands.
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
    places = {name: place for place, name in enumerate(out.classes)}
    for row, size, found in kept:
        own = tuple(places[str(box.category)] for box in found)
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


def _image_id(row: Row) -> str:
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
) -> list[Boxed]:
    """Return the boxes of a row, cut to its picture, with the names of their classes."""
    found = []
    for number, (box, category) in enumerate(boxes_of(values)):
        name = category
        if isinstance(category, int):
            if not 0 <= category < len(names):
                raise ValueError(
                    f"has box {number} of class {category}; expected a name, or a number below"
                    f" {len(names)}, as many names as the file tells"
                )
            name = names[category]
        if box[2] < box[0] or box[3] < box[1]:
            if not skips_errors:
                raise ValueError(_reversed(values, number, box))
            out.leave_out("reversed boxes")
            continue
        clipped = box
        if size is not None:
            height, width = size
            clipped = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height))
            beyond = max(abs(a - b) for a, b in zip(box, clipped, strict=True))
            if beyond > BOX_SLACK_PIXELS and not skips_errors:
                raise ValueError(
                    f"has box {number}, (x0, y0, x1, y1) = {box}, {beyond:g} pixels outside its"
                    f" picture of {height} x {width} (height x width)"
                )
        if min(clipped[2] - clipped[0], clipped[3] - clipped[1]) <= EMPTY_BOX_PIXELS:
            out.leave_out("empty boxes")
            continue
        out.leave_out("clipped boxes", int(clipped != box))
        found.append(Boxed(clipped, name))
    return found


def _reversed(values: Mapping[str, Any], number: int, box: tuple[float, ...]) -> str:
    """Say of a box what is wrong, in the form that the row has it in."""
    x0, y0, x1, y1 = box
    if "boxes_xyxy" in values:
        return f"has box {number}, {box}; expected x0 <= x1 and y0 <= y1 (x0, y0, x1, y1)"
    return (
        f"has box {number}, (x, y, width, height) = {(x0, y0, x1 - x0, y1 - y0)}; expected a width"
        " and a height of 0 or more"
    )
