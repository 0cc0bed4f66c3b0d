"""Readers of WebDataset shards: tar files whose members of one name are a sample.

    000017.jpg    the picture (.jpg, .jpeg, .png, .webp, .gif, .bmp, .tif, .tiff, .avif)
    000017.txt    its caption
    000017.json   {"caption": "..."} and what else `rows` lists: questions and answers, boxes

The name of a sample is what stands before the first dot of the last part of its members' names, as
in `webdataset`; its members follow one another, in any order. `caption` and the like of the JSON
come before .txt. Pictures are read when a record's are looked at, in any order and by any thread.

Samples without a picture and those without what is asked for are left out and counted, so are
members that are no regular files and those without an ending. A member that stands there twice, a
name in two places, text that is not UTF-8, JSON that is none, and what `TarFile` refuses are errors
that name file and member.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from fiber.data.formats.row_records import (
    Row,
    RowRecords,
    box_records,
    caption_records,
    question_records,
)
from fiber.data.formats.rows import BOXES, CAPTIONS, QUESTIONS
from fiber.data.storage.tar import Member, TarFile, as_json

AnyPath = str | PathLike[str]

#: What the files are, in messages.
KIND = "WebDataset shards"
#: Endings of pictures; of several in a sample the first of these is its picture.
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")


class Sample(NamedTuple):
    """The members of one name."""

    name: str
    #: By ending, in small letters.
    members: dict[str, Member]

    @property
    def picture(self) -> Member | None:
        """The picture, if there is one."""
        return next((self.members[end] for end in PICTURES if end in self.members), None)


def samples_of(file: TarFile, counts: dict[str, int]) -> Iterator[Sample]:
    """Group the members of a shard.

    Args:
        file: the shard.
        counts: where members without an ending are counted.

    Raises:
        ValueError: for a member or a name that stands there twice.
    """
    seen: set[str] = set()
    sample: Sample | None = None
    for member in file.members:
        folder, slash, last = member.name.rpartition("/")
        stem, dot, end = last.partition(".")
        if not dot or not stem or not end:
            counts["members without an ending"] = counts.get("members without an ending", 0) + 1
            continue
        name = f"{folder}{slash}{stem}"
        if sample is None or sample.name != name:
            if sample is not None:
                yield sample
            if name in seen:
                raise ValueError(
                    f"{file.path}: the members of {name!r} stand in two places, the second begins"
                    f" with {member.name!r}; expected each name once, its members together"
                )
            seen.add(name)
            sample = Sample(name, {})
        if end.lower() in sample.members:
            raise ValueError(
                f"{file.path}: member {member.name!r} stands there twice; expected it once"
            )
        sample.members[end.lower()] = member
    if sample is not None:
        yield sample


class _Shards:
    """Shards whose samples follow one another."""

    def __init__(self, paths: Sequence[AnyPath]) -> None:
        self.files = [TarFile(Path(path)) for path in paths]
        self.counts: dict[str, int] = {}

    def picture(self, place: tuple[int, int, int]) -> bytes:
        """Read the picture of a shard, start and size."""
        number, start, size = place
        return self.files[number].read(start, size)

    def rows(self, wanted: Sequence[str], what: str) -> Iterator[Row]:
        """Yield a row for each sample that has a picture and one of some fields.

        Raises:
            ValueError: if no sample is one, with the endings that they have.
        """
        found, endings = 0, dict[str, None]()
        for number, file in enumerate(self.files):
            for sample in samples_of(file, self.counts):
                endings.update(dict.fromkeys(sample.members))
                picture = sample.picture
                if picture is None:
                    self._count("samples without a picture")
                    continue
                values = fields_of(file, sample)
                if not any(name in values for name in wanted):
                    self._count(f"samples without {what}")
                    continue
                found += 1
                yield Row(
                    where=f"{file.path}: sample {sample.name!r}",
                    key=f"{file.path.stem}/{sample.name}",
                    values=values,
                    places=((number, picture.start, picture.size),),
                )
        if not found:
            have = ", ".join(f".{end}" for end in list(endings)[:8]) or "nothing"
            raise ValueError(
                f"{self.files[0].path if self.files else 'no shard'}: no sample has a picture and"
                f" {what}; expected .jpg, .png or .webp and .txt or .json with"
                f" {' or '.join(map(repr, wanted))}; samples have {have}"
            )

    def finish(self, out: RowRecords) -> RowRecords:
        """Tell what was left out of the shards."""
        for what, times in self.counts.items():
            out.leave_out(what, times)
        for file in self.files:
            out.notes += file.notes
            for what, times in file.counts.items():
                out.leave_out(what, times)
        return out

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def fields_of(file: TarFile, sample: Sample) -> dict[str, Any]:
    """Return the fields of a sample; a text is the caption of JSON that has none.

    Raises:
        ValueError: if its text or JSON is none, with file and member.
    """
    values: dict[str, Any] = {}
    if "json" in sample.members:
        member = sample.members["json"]
        values = as_json(file.text(member), f"{file.path}: member {member.name!r}")
    if "txt" in sample.members and not any(name in values for name in CAPTIONS):
        values["caption"] = file.text(sample.members["txt"]).strip()
    return values


def shard_captions(*paths: AnyPath) -> RowRecords:
    """Read captions.

    Args:
        paths: shards, whose records follow one another.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for what the module's first lines call an error.
    """
    shards = _Shards(paths)
    return shards.finish(caption_records(shards.rows(CAPTIONS, "captions"), shards.picture))


def shard_questions(*paths: AnyPath) -> RowRecords:
    """Read questions of the JSON; arguments and errors are those of `shard_captions`."""
    shards = _Shards(paths)
    return shards.finish(question_records(shards.rows(QUESTIONS, "questions"), shards.picture))


def shard_boxes(
    *paths: AnyPath, on_error: str = "raise", shots: int = 0, objects: bool = False
) -> RowRecords:
    """Read boxes of classes of the JSON: see `row_records.box_records`.

    `objects` is for metrics, which measure by the boxes themselves where there are no crowds.
    Other arguments and errors are those of `shard_captions`.
    """
    shards = _Shards(paths)
    read = functools.partial(box_records, on_error=on_error, shots=shots)
    return shards.finish(read(shards.rows(BOXES, "boxes"), shards.picture))
