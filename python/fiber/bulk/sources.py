"""Records of a source for `fiber map`: which of its records and which of their texts are used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fiber.bulk.tasks import BulkTask
from fiber.data.datasets.registry import SOURCES
from fiber.data.datasets.resolve import open_source
from fiber.data.fingerprint import fingerprint_of
from fiber.data.formats.arrow import IMAGES as IMAGE_COLUMNS
from fiber.data.formats.arrow_table import open_table
from fiber.data.formats.layout import TABLES
from fiber.data.formats.webdataset import IMAGE_EXTENSIONS, samples_of
from fiber.data.image_file import ENDINGS
from fiber.data.record import AnyPath, ConcatRecords, LazyImages, Record, RecordSequence, RecordSet
from fiber.data.storage.remote import is_url
from fiber.data.storage.remote_pack import local_path
from fiber.data.storage.shard_order import ShardedRecords
from fiber.data.storage.tar import TarFile
from fiber.data.tools.discover import Part, parts_of
from fiber.messages import printable, shown, shown_names

#: Name of the source of images without texts.
IMAGES = "images"
#: Length in characters of the part of an error of the data that is shown.
_MAX_REASON = 1000
#: Number of records of a unit of a source without shards.
UNIT_RECORDS = 1024
#: Sources whose records have the texts of a kind, best first.
_SOURCES_OF = {
    "question": ("questions",),
    "text": ("captions", "referring", "phrases"),
    "phrases": ("expression_masks", "referring"),
    "caption": ("phrases", "captions"),
    "classes": ("detection", "panoptic", "instances", "label_maps"),
}
#: Sources whose records have two images.
_PAIRS = ("reasoning", "swapped")


class BareImages(RecordSequence):
    """Images without texts as records: of a folder, of tar shards, or of tables.

    Args:
        keys: name of each image, which is its key.
        locations: path of each image, or what `read` reads it from.
        fingerprint: hash of the names and sizes of the images.
        read: function of a location, if images are no files of their own.
    """

    def __init__(
        self,
        keys: Sequence[str],
        locations: Sequence[Any],
        fingerprint: str,
        read: Callable[[Any], Any] | None = None,
    ) -> None:
        self._keys, self._locations, self._read = keys, locations, read
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self._keys)

    def _record(self, index: int) -> Record:
        location = self._locations[index]
        images = (location,) if self._read is None else LazyImages(self._read, (location,))
        return Record(key=self._keys[index], images=images, text="")


@dataclass(frozen=True)
class BulkRecords:
    """Records of one source of a folder, a file or a URL, and how they are divided into units."""

    #: Absolute path, or URL.
    data: str
    #: Name of the source, or "images".
    source: str
    splits: tuple[str, ...]
    records: RecordSet
    fingerprint: str
    #: Kind of texts that the records have, or None if the task asks about images alone.
    kind: str | None

    def units(self) -> list[Sequence[int]]:
        """Return the indices of the records of each unit: a shard, or 1,024 records."""
        count = len(self.records)
        if isinstance(self.records, ShardedRecords):
            try:
                numbers = self.records.shard_map().numbers()
            except ValueError:
                # Of several parts, one has no shards.
                numbers = None
            if numbers is not None:
                order = np.argsort(numbers, kind="stable")
                starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
                parts: list[Any] = np.split(order, starts[1:])
                return [part for part in parts if len(part)]
        return [
            range(start, min(start + UNIT_RECORDS, count))
            for start in range(0, count, UNIT_RECORDS)
        ]

    def of_unit(self, indices: Sequence[int]) -> Iterator[tuple[int, Record | Exception]]:
        """Yield the index and the record of a unit's records, or the error of reading it.

        Of records that follow each other with the same image, only the first is yielded if the task
        asks about images alone.
        """
        before: str | None = None
        for place, number in enumerate(indices):
            index = int(number)
            try:
                record = self.records[index]
            except (OSError, ValueError) as error:
                before = None
                yield index, error
                continue
            if self.kind is None:
                if place == 0 and index > 0:
                    before = _image_id(self.records, index - 1)
                is_same = record.image_id == before
                before = record.image_id
                if is_same:
                    continue
            yield index, record

    def texts_of(self, record: Record) -> dict[str, Any]:
        """Return the texts of a record for the task, by kind; None for one that it lacks."""
        if self.kind is None:
            return {}
        if self.kind == "phrases":
            phrases = record.phrases or ((record.text,) if record.text else ())
            return {"phrases": list(phrases) or None}
        if self.kind == "classes":
            return {"classes": list(record.labels) or None}
        texts: dict[str, Any] = {self.kind: record.text or None}
        if self.kind == "caption" and record.label_spans:
            texts["spans"] = [[tuple(span) for span in own] for own in record.label_spans]
        return texts


def open_records(
    data: AnyPath,
    task: BulkTask,
    shared: Sequence[str] = (),
    *,
    source: str | None = None,
    splits: Sequence[str] = (),
) -> BulkRecords:
    """Open the records of a folder, a file or a URL for a task.

    Args:
        data: what `fiber data inspect` reads; or a folder of image files, tar shards or tables of
            images without texts.
        task: the task.
        shared: kinds of texts that are given for all records.
        source: source whose records are used. Default: the first one with the texts of the task.
        splits: splits to read; default: all.

    Raises:
        FileNotFoundError: if the data do not exist.
        ValueError: if they have no records of the source or the splits, or none with the texts that
            the task needs.
    """
    where = str(data) if isinstance(data, str) and is_url(data) else str(Path(data).absolute())
    path = local_path(data)
    parts: list[Part] = []
    try:
        parts = parts_of(path, splits)
    except ValueError:
        # It may still be images without texts.
        if source not in (None, IMAGES) or splits or (found := _bare_images(path)) is None:
            raise
        _check_texts(task, shared, where)
        return BulkRecords(where, IMAGES, (), found, found.fingerprint, None)
    chosen, kind = _choose(parts, task, shared, source, where)
    own = list(dict.fromkeys(part.split for part in parts if part.source == chosen))
    records = _concatenated(chosen, path, own)
    if not len(records):
        raise ValueError(f"{where} has no records of {chosen}")
    return BulkRecords(where, chosen, tuple(own), records, fingerprint_of(records), kind)


def reopen(about: Mapping[str, Any], where: str) -> RecordSet:
    """Open the records that `open_records` chose.

    Args:
        about: fields "data", "source" and "splits", as in `map.json`.
        where: the place of these fields, which errors name.

    Raises:
        FileNotFoundError: if the data do not exist.
        ValueError: if they cannot be read, or have no such records any more.
    """
    data, source = about["data"], about["source"]
    try:
        path = local_path(data)
        if source != IMAGES:
            if not about["splits"]:
                raise ValueError(f"expected one or more splits of {shown(source)}, got none")
            return _concatenated(source, path, about["splits"])
        found = _bare_images(path)
    except (OSError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{where}: {printable(str(error), _MAX_REASON)}") from error
    if found is None:
        raise ValueError(f"{where}: {shown(data)} has no images any more")
    return found


def name_of_image(record: Record) -> str:
    """Return the path of the first image of a record, or the id of the image."""
    if isinstance(record.images, tuple) and isinstance(record.images[0], (str, os.PathLike)):
        return os.fspath(record.images[0])
    return record.image_id


def _concatenated(source: str, path: Path, splits: Sequence[str]) -> RecordSet:
    opened = [open_source(source, path, split) for split in splits]
    return opened[0] if len(opened) == 1 else ConcatRecords(opened)


def _image_id(records: RecordSet, index: int) -> str | None:
    try:
        return records[index].image_id
    except (OSError, ValueError):
        return None


def _choose(
    parts: Sequence[Part], task: BulkTask, shared: Sequence[str], source: str | None, where: str
) -> tuple[str, str | None]:
    """Return the source whose records are used, and the kind of their texts."""
    there = [name for name in dict.fromkeys(part.source for part in parts) if name not in _PAIRS]
    if source is not None and source not in there:
        raise ValueError(f"{where} has no {source}; expected one of {shown_names(there)}")
    usable = there if source is None else [source]
    if not usable:
        raise ValueError(
            f"{where} has only records of two images; expected records of one image each"
        )
    if not shared:
        for kind in task.texts:
            for name in _SOURCES_OF[kind]:
                for each in usable:
                    if name in (each, SOURCES[each].of):
                        return each, kind
        _check_texts(task, shared, f"{where}, which has {shown_names(usable)},")
    return usable[0], None


def _check_texts(task: BulkTask, shared: Sequence[str], where: str) -> None:
    """Raise ValueError if a task has no texts, neither of records nor for all of them."""
    if not shared and not task.may_lack_texts:
        options = " or ".join(f"--{name}" for name in task.texts)
        raise ValueError(
            f"{task.name} needs a text for each image, and {where} has none; pass {options} for all"
            " records"
        )


def _bare_images(path: Path) -> BareImages | None:
    """Return the images of a folder or a file without texts, or None if there are none."""
    files = [path]
    if path.is_dir():
        found = sorted(_files_in(path))
        images = [(name, size) for name, size in found if name.lower().endswith(ENDINGS)]
        if images:
            digest = hashlib.blake2b(repr(images).encode(), digest_size=8).hexdigest()
            names = [name for name, _ in images]
            return BareImages(names, [str(path / name) for name in names], digest)
        files = [path / name for name, _ in found]
    shards = [file for file in files if file.suffix == ".tar"]
    if shards:
        return _in_shards(shards)
    tables = [file for file in files if file.suffix in (".parquet", ".arrow")]
    return _in_tables(tables) if tables else None


def _files_in(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the name relative to a folder and the size of each file, without hidden ones."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = Path(parent, name)
            if not name.startswith(".") and file.is_file():
                yield file.relative_to(folder).as_posix(), file.stat().st_size


def _in_shards(paths: Sequence[Path]) -> BareImages | None:
    files = [TarFile(path) for path in paths]
    keys, locations = [], []
    for number, file in enumerate(files):
        for sample in samples_of(file, {}):
            images = [sample.members[e] for e in IMAGE_EXTENSIONS if e in sample.members]
            if images:
                keys.append(f"{file.path.stem}/{sample.name}")
                locations.append((number, images[0].start, images[0].size))
    digest = hashlib.blake2b(repr((keys, locations)).encode(), digest_size=8).hexdigest()

    def read(location: tuple[int, int, int]) -> bytes:
        number, start, size = location
        return files[number].read(start, size)

    return BareImages(keys, locations, digest, read) if keys else None


def _in_tables(paths: Sequence[Path]) -> BareImages | None:
    tables = [open_table(path, TABLES) for path in paths]
    keys, locations = [], []
    for number, table in enumerate(tables):
        column = next((name for name in IMAGE_COLUMNS if name in table.columns), None)
        if column is not None:
            keys += [f"{table.path.stem}/{row}" for row in range(table.num_rows)]
            locations += [(number, row, column) for row in range(table.num_rows)]
    sizes = [path.stat().st_size for path in paths]
    digest = hashlib.blake2b(repr((keys, sizes)).encode(), digest_size=8).hexdigest()

    def read(location: tuple[int, int, str]) -> Any:
        number, row, column = location
        return tables[number].image(column, row)

    return BareImages(keys, locations, digest, read) if keys else None
