"""Records: what a data set holds, before anything is decoded.

A data set is any map-style collection of `Record` (it has `__len__` and `__getitem__`): a list will
do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from os import PathLike
from typing import Any, Protocol, overload, runtime_checkable

from fiber.data.char_spans import CharSpan, whole_characters

#: A picture as it is stored: the path of a file or the bytes of one.
StoredImage = str | PathLike[str] | bytes


class StoredPictures(Sequence[StoredImage]):
    """Pictures of a record that are read each time that they are looked at, and not before.

    So the texts of a set can be gone through without reading a picture. Two are equal if they are
    read by the same function from the same places.

    Args:
        read: gives the picture of a place; several threads may call it at once.
        places: of each picture.
    """

    def __init__(self, read: Callable[[Any], StoredImage], places: tuple[Hashable, ...]) -> None:
        self._read = read
        self._places = places

    @property
    def places(self) -> tuple[Hashable, ...]:
        """Where each picture is read."""
        return self._places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> StoredImage: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[StoredImage]: ...

    def __getitem__(self, index: int | slice) -> StoredImage | Sequence[StoredImage]:
        if isinstance(index, slice):
            return StoredPictures(self._read, self._places[index])
        return self._read(self._places[index])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StoredPictures):
            return NotImplemented
        return self._places == other._places and self._read == other._read

    def __hash__(self) -> int:
        return hash((self._read, self._places))

    def __repr__(self) -> str:
        return f"StoredPictures{self._places!r}"


@dataclass(frozen=True, kw_only=True)
class TrueObjects:
    """Every object of a picture as its annotation file has it, for metrics that count all of them.

    Boxes that training leaves out or clips (crowds, empty ones, those beyond the border) are here
    as they were written.
    """

    #: Half-open pixels of the stored picture.
    boxes_xyxy: tuple[tuple[float, float, float, float], ...] = ()
    #: For each box its place in `Record.labels`.
    labels: tuple[int, ...] = ()
    #: For each box the square pixels of the thing itself.
    areas: tuple[float, ...] = ()
    #: For each box whether it stands for a crowd.
    crowd: tuple[bool, ...] = ()
    #: Places in `Record.labels` of what was looked for and is not there; None: all that has no box.
    absent: frozenset[int] | None = None
    #: Places in `Record.labels` of what may have more than its boxes.
    incomplete: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Record:
    """One picture (or two) with a text and what is known about them.

    Only `key`, `images` and `text` are always needed; a task says by name which other field it
    misses.
    """

    #: Name of the record in messages and prediction files, unique in its data set.
    key: str
    #: One picture; two for NLVR2-like statements (left, right).
    images: tuple[StoredImage, ...] | StoredPictures
    #: Caption, question, statement or prompt.
    text: str
    #: Records with the same image_id show the same picture. Default: the key.
    image_id: str = ""
    #: (height, width) in pixels that the annotation file gives the picture; None: it does not say.
    image_size: tuple[int, int] | None = None
    #: Boxes (x0, y0, x1, y1) in pixels of the stored picture, half-open.
    boxes_xyxy: tuple[tuple[float, float, float, float], ...] = ()
    #: For each box, the spans of `text` that name it.
    char_spans: tuple[tuple[CharSpan, ...], ...] = ()
    #: For each box, the index of its class or phrase; used by metrics only.
    box_labels: tuple[int, ...] = ()
    #: Phrases or class names that `box_labels` counts through.
    labels: tuple[str, ...] = ()
    #: For each of `labels`, the spans of `text` that name it, whether it has a box or not.
    label_spans: tuple[tuple[CharSpan, ...], ...] = ()
    #: For each of `labels` its id in the annotation file, for result files.
    label_ids: tuple[int, ...] = ()
    #: For each of `labels` what it is counted among: LVIS' "r", "c" and "f".
    label_groups: tuple[str, ...] = ()
    #: What detections are measured by; None: `boxes_xyxy`.
    objects: TrueObjects | None = None
    #: Answers with their soft scores in [0, 1] (VQA).
    answers: Mapping[str, float] | None = None
    #: What each person answered, as written (VQAv2: ten people), for the two named accuracies.
    human_answers: tuple[str, ...] = ()
    #: Whether the text is true of the pictures (NLVR2), or which text is right (matching).
    truth: bool | None = None
    #: Group of the record for metrics: question type, kind of phrase and so on.
    group: str = ""

    def __post_init__(self) -> None:
        _check_pictures(self.key, self.images)
        for name in ("key", "text", "image_id"):
            if not isinstance(found := getattr(self, name), str):
                raise TypeError(
                    f"record {self.key!r}: {name} is {found!r:.40}, of type"
                    f" {type(found).__name__}; expected str"
                )
        if (size := self.image_size) is not None and (
            not isinstance(size, Collection) or len(size) != 2
        ):
            raise ValueError(
                f"record {self.key!r}: image_size is {size!r:.40}; expected (height, width) in"
                " pixels"
            )
        if not self.text.isascii():
            _check_characters(self.key, self.text)
        if len(self.boxes_xyxy) != len(self.char_spans) and self.char_spans:
            raise ValueError(
                f"record {self.key!r} has {len(self.boxes_xyxy)} boxes and {len(self.char_spans)}"
                " entries of char_spans; expected one entry for each box"
            )
        for index, box in enumerate(self.boxes_xyxy):
            if len(box) != 4 or not all(map(isfinite, box)):
                raise ValueError(
                    f"record {self.key!r}: box {index} is {tuple(box)!r:.80}; expected four finite"
                    " numbers (x0, y0, x1, y1) in pixels"
                )
            x0, y0, x1, y1 = box
            if x0 > x1 or y0 > y1:
                raise ValueError(
                    f"record {self.key!r}: box {index} is ({x0}, {y0}, {x1}, {y1});"
                    " expected x0 <= x1 and y0 <= y1 in pixels"
                )
        is_plain = self.text.isascii()
        for spans in (*self.char_spans, *self.label_spans):
            for span in spans:
                start, end = span
                if not 0 <= start < end <= len(self.text):
                    raise ValueError(
                        f"record {self.key!r}: span [{start}, {end}) is not inside its text of"
                        f" {len(self.text)} characters"
                    )
                if not is_plain and (whole := whole_characters(self.text, (start, end))) != span:
                    raise ValueError(
                        f"record {self.key!r}: span [{start}, {end}) begins or ends inside a"
                        " character of several code points; expected"
                        f" [{whole[0]}, {whole[1]}), {self.text[slice(*whole)]!r:.60}"
                    )
        if not self.image_id:
            object.__setattr__(self, "image_id", self.key)


def check_record(record: object, index: int) -> None:
    """Refuse what is no record.

    Args:
        record: what a data set gave.
        index: its place there, or in its batch.

    Raises:
        TypeError: that names both.
    """
    if not isinstance(record, Record):
        raise TypeError(
            f"record {index} is a {type(record).__name__}; expected fiber.data.Record, such as"
            " Record(key='1', images=('1.jpg',), text='a dog')"
        )


def _check_pictures(key: str, images: Any) -> None:
    if isinstance(images, str | bytes):
        raise TypeError(
            f"record {key!r}: images is one {type(images).__name__}; expected a tuple of pictures"
        )
    if not images:
        raise ValueError(f"record {key!r} has no picture")
    if isinstance(images, StoredPictures):
        return
    for number, image in enumerate(images):
        if not isinstance(image, str | bytes | PathLike):
            raise TypeError(
                f"record {key!r}: picture {number} is of type {type(image).__name__}; expected the"
                " path of a file, or its bytes"
            )


def _check_characters(key: str, text: str) -> None:
    """Refuse halves of surrogate pairs, which JSON can hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"record {key!r}: its text has half a surrogate pair, {text[error.start]!r}, at"
            f" {error.start}; expected whole characters"
        ) from None


@runtime_checkable
class RecordSet(Protocol):
    """Any map-style collection of records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@runtime_checkable
class EpochRecords(RecordSet, Protocol):
    """Records some of which differ from epoch to epoch, such as prompts that are drawn anew."""

    def in_epoch(self, epoch: int, index: int, /) -> Record:
        """Give a record as an epoch, counted from 0, has it."""
        ...


def record_in_epoch(records: RecordSet, epoch: int, index: int) -> Record:
    """Give a record as an epoch has it; most sets have the same ones in all."""
    if isinstance(records, EpochRecords):
        return records.in_epoch(epoch, index)
    return records[index]


class ConcatRecords(Sequence[Record]):
    """Several record sets, one after the other."""

    def __init__(self, parts: Sequence[RecordSet]) -> None:
        self.parts = list(parts)
        self._starts = [0]
        for part in self.parts:
            self._starts.append(self._starts[-1] + len(part))

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        part, place = self._find(index)
        return self.parts[part][place]

    def in_epoch(self, epoch: int, index: int) -> Record:
        """Give a record as an epoch has it."""
        part, place = self._find(index)
        return record_in_epoch(self.parts[part], epoch, place)

    def _find(self, index: int) -> tuple[int, int]:
        """Give the part that holds a record, and its place there."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        part = next(i for i, start in enumerate(self._starts[1:]) if index < start)
        return part, index - self._starts[part]
