"""WebDataset shards: tar files whose members with the same base name form a sample.

    000017.jpg    image (.jpg, .jpeg, .png, .webp, .gif, .bmp, .tif, .tiff, .avif)
    000017.txt    caption
    000017.json   {"caption": "..."} or other fields of `rows`: questions, answers, boxes

As in the `webdataset` library, the name of a sample is the member name up to the first dot in the
last path component. The members of a sample are adjacent, in any order. Captions in .json have
priority over .txt. Images are read on access, in any order and by any thread.

Samples without an image or without the requested fields are skipped and counted, as are members
that are not regular files or have no extension. Duplicate members, samples whose members are not
adjacent, text that is not UTF-8, invalid JSON, and files that `TarFile` rejects raise errors that
name the file and the member.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from fiber.data.formats.row_records import DataRow, RowSource
from fiber.data.formats.rows import CAPTIONS, FIELDS
from fiber.data.record import AnyPath
from fiber.data.storage.tar import Member, TarFile, as_json
from fiber.messages import shown, shown_names

#: Image extensions. If a sample has several images, the first in this order is used.
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")


class Sample(NamedTuple):
    """Members that share a sample name."""

    name: str
    #: Members by lower-case extension.
    members: dict[str, Member]


def samples_of(file: TarFile, counts: dict[str, int]) -> Iterator[Sample]:
    """Group the members of a shard, and count those without an extension in `counts`.

    Raises:
        ValueError: if a member is duplicated, or the members of a sample are not adjacent.
    """
    seen: set[str] = set()
    for name, group in groupby(_named_members(file, counts), key=itemgetter(0)):
        members: dict[str, Member] = {}
        for _, extension, member in group:
            if name in seen:
                raise ValueError(
                    f"{file.path}: member {shown(member.name)} is not adjacent to the other"
                    f" members of sample {shown(name)}"
                )
            if extension in members:
                raise ValueError(f"{file.path}: duplicate member {shown(member.name)}")
            members[extension] = member
        seen.add(name)
        yield Sample(name, members)


def _named_members(file: TarFile, counts: dict[str, int]) -> Iterator[tuple[str, str, Member]]:
    """Yield (sample name, lower-case extension, member) for each member with an extension."""
    for member in file.members:
        folder, slash, last = member.name.rpartition("/")
        stem, _, extension = last.partition(".")
        if stem and extension:
            yield f"{folder}{slash}{stem}", extension.lower(), member
        else:
            counts["members without an ending"] = counts.get("members without an ending", 0) + 1


def fields_of(file: TarFile, sample: Sample) -> dict[str, Any]:
    """Return the fields of a sample. The caption is read from .txt if the JSON has none.

    Raises:
        ValueError: if text is not UTF-8 or JSON is invalid; the error names the file and the
            member.
    """
    values: dict[str, Any] = {}
    if "json" in sample.members:
        member = sample.members["json"]
        values = as_json(file.text(member), f"{file.path}: member {shown(member.name)}")
    if "txt" in sample.members and not any(name in values for name in CAPTIONS):
        values["caption"] = file.text(sample.members["txt"]).strip()
    return values


class Shards(RowSource):
    """Samples of one or more shards, as one sequence.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the content is invalid; see the module docstring.
    """

    def __init__(self, paths: Sequence[AnyPath]) -> None:
        super().__init__()
        self.files = [TarFile(Path(path)) for path in paths]

    def image(self, location: tuple[int, int, int]) -> bytes:
        """Read the image at (shard, start, size)."""
        number, start, size = location
        return self.files[number].read(start, size)

    def rows(self, kind: str) -> Iterator[DataRow]:
        """Yield the rows of the given kind; see `RowSource`."""
        found, required, extensions = 0, FIELDS[kind][0], dict[str, None]()
        for number, file in enumerate(self.files):
            for sample in samples_of(file, self.counts):
                extensions.update(dict.fromkeys(sample.members))
                images = [sample.members[e] for e in IMAGE_EXTENSIONS if e in sample.members]
                if not images:
                    self.skip("samples without a picture")
                    continue
                values = fields_of(file, sample)
                if not any(name in values for name in required):
                    self.skip(f"samples without {kind}")
                    continue
                found += 1
                yield DataRow(
                    where=f"{file.path}: sample {shown(sample.name)}",
                    key=f"{file.path.stem}/{sample.name}",
                    values=values,
                    locations=((number, images[0].start, images[0].size),),
                )
        if not found:
            raise ValueError(
                f"{self.files[0].path}: no sample has an image and {kind}; expected .jpg, .png or"
                f" .webp, and .txt or .json with {' or '.join(map(repr, required))}, got members"
                f" with the extensions {shown_names(extensions)}"
            )
        for file in self.files:
            self.add_report(file)
