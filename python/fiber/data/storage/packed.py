"""Packed folders: tar shards of images with an index of every record.

    pack.json                     shards, parts, counts, checksums of all files, fingerprint
    train-000000.tar              WebDataset samples: an image, and .json with its annotations
    index/train-images.bin        location and CRC-32 of each image, as `pack_index.ENTRY`
    index/train-captions.jsonl    one record per line, in order, with image numbers
    index/train-captions.bin      location, first image and CRC-32 of each line

`fiber.data.tools.pack` writes such folders. A record that is read equals the one that was
packed, except that its images are bytes, and a path in `image_id` is relative to the source folder.

Opening a folder checks pack.json, the sizes of all files of the split, and `SAMPLED` records and
images with their tar headers, and the first image of every shard. Every record and image that is
read later is checked by its CRC-32. `fiber data inspect --verify` reads all files.
"""

from __future__ import annotations

import dataclasses
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from fiber.atomic_io import JSON_ERRORS
from fiber.data.datasets.registry import SOURCES
from fiber.data.formats.json_values import find_surrogate, is_integer, may_have_surrogates
from fiber.data.record import LazyImages, Record, RecordSequence
from fiber.data.storage.file_pool import ChangedFileError, PooledFile
from fiber.data.storage.pack_description import (
    DESCRIPTION,
    IMAGES,
    NOT_PACKED,
    file_of,
    read_description,
)
from fiber.data.storage.pack_index import TAR_BLOCK, FlatIndex, IndexEntry
from fiber.data.storage.record_entry import from_entry, read_fields
from fiber.data.storage.remote_pack import shards_of
from fiber.data.storage.shard_cache import CachedShard
from fiber.data.storage.shard_order import ShardFile, ShardMap
from fiber.messages import printable, shown, shown_names

#: Number of records and of images, evenly spaced over a split, that are checked when it is opened.
SAMPLED = 64
#: Maximum number of characters of a note.
MAX_NOTE = 2000


class PackedRecords(RecordSequence):
    """Records of one source and split of a packed folder, read on access.

    Args:
        folder: packed folder.
        part: entry of `parts` in its description.
        objects: if True, also set `Record.objects`, for metrics.
        whole: if True, make all spans cover the whole text.
        masks: if False, leave out `Record.masks`.

    Attributes:
        fingerprint: fingerprint of the folder.
        counts: number of entries skipped when the folder was packed, by kind.
        notes: notes that the reader reported when the folder was packed.
        classes: class names of the boxes.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not the one that was packed.
    """

    def __init__(
        self,
        folder: Path,
        part: dict[str, Any],
        *,
        objects: bool = False,
        whole: bool = False,
        masks: bool = True,
    ) -> None:
        description = read_description(folder)
        split = part["split"]
        self.fingerprint: str = description["fingerprint"]
        self.counts: dict[str, int] = dict(part["counts_of_objects" if objects else "counts"])
        self.notes: list[str] = [printable(note, MAX_NOTE) for note in part["notes"]]
        self.classes: tuple[str, ...] = tuple(part["classes"])
        self._objects, self._whole, self._masks = objects, whole, masks
        self._shared = [
            _shared_fields(shared, f"{folder / DESCRIPTION}: 'shared'[{index}]")
            for index, shared in enumerate(part["shared"])
        ]
        self._text = PooledFile(file_of(folder, part))
        #: Line index of each record.
        self.lines: Sequence[int] = range(part["records"])
        shards = [shard for shard in description["shards"] if shard["split"] == split]
        remote = shards_of(folder, shards)
        self._shards: list[ShardFile] = remote or [_open_file(folder, shard) for shard in shards]
        self._records, self._images = self._indexes(folder, description, part, shards)
        for line in _spread(len(self._records)):
            self._line(line)
        # Shards at a URL are checked when they are downloaded.
        checked = () if remote else {*_spread(len(self._images)), *_first_images(shards)}
        for number in sorted(checked):
            self.check_image(number)

    def _indexes(
        self,
        folder: Path,
        description: dict[str, Any],
        part: dict[str, Any],
        shards: Sequence[dict[str, Any]],
    ) -> tuple[FlatIndex, FlatIndex]:
        """Return the indexes of the records and of the images."""
        split = part["split"]
        of = {
            index["source"]: file_of(folder, index)
            for index in description["indexes"]
            if index["split"] == split
        }
        for name in (part["source"], IMAGES):
            if name not in of:
                raise ValueError(
                    f"{folder / DESCRIPTION} has no index of {shown(split)}, {shown(name)}"
                )
        images = sum(shard["pictures"] for shard in shards)
        records = FlatIndex(of[part["source"]], part["records"])
        if self._text.bytes != part["bytes"]:
            raise _other_size(self._text, part["bytes"])
        return records, FlatIndex(of[IMAGES], images)

    def __len__(self) -> int:
        return len(self.lines)

    def _line(self, line: int) -> tuple[IndexEntry, bytes]:
        """Read a line of the index; raise ValueError if it has changed."""
        entry = self._records.line(line)
        data = self._text.read(entry.start, entry.size)
        if zlib.crc32(data) != entry.crc32:
            raise ChangedFileError(f"{self._text.path}: line {line + 1} {NOT_PACKED}")
        return entry, data

    def _record(self, index: int) -> Record:
        line = self.lines[index]
        location, data = self._line(line)
        try:
            text = data.decode()
            entry = json.loads(text)
            if not isinstance(entry, dict):
                raise ValueError(f"it is {shown(entry)}; expected an object")
            if may_have_surrogates(text) and (lone := find_surrogate(entry)) is not None:
                raise ValueError(f"it has a lone surrogate in {shown(lone)}")
            shared, numbers = entry.pop("shared", None), entry.pop("images", None)
            if shared is not None and not is_integer(shared, 0, len(self._shared) - 1):
                raise ValueError(
                    f"shared is {shown(shared)}; expected an index of {len(self._shared)}"
                )
            if not isinstance(numbers, list) or not numbers or not all(map(is_integer, numbers)):
                raise ValueError(f"images is {shown(numbers)}; expected one or two integers")
            if location.number != numbers[0]:
                raise ValueError(f"its first image is {numbers[0]}; expected {location.number}")
            if not self._objects:
                entry.pop("objects", None)
            if not self._masks:
                for name in ("masks", "mask_labels", "mask_crowd", "box_masks"):
                    entry.pop(name, None)
            images = LazyImages(self.image, tuple(numbers))
            fields = {} if shared is None else self._shared[shared]
            record = from_entry(entry, images, fields)
            if self._whole:
                record = _with_whole_spans(record)
        except (*JSON_ERRORS, TypeError) as problem:
            raise ValueError(f"{self._text.path}: line {line + 1}: {problem}") from None
        return record

    @property
    def num_images(self) -> int:
        """Number of images of the split."""
        return len(self._images)

    def shard_map(self) -> ShardMap:
        """Return the shards, and the shard of the first image of each record."""
        return ShardMap(self._shards, self._shard_of_records)

    def _shard_of_records(self) -> np.ndarray:
        images = self._records.numbers()
        if not isinstance(self.lines, range):
            images = images[np.asarray(self.lines, dtype=np.int64)]
        if images.size and int(images.max()) >= len(self._images):
            raise ValueError(
                f"{self._text.path} refers to image {images.max()}; expected 0 to"
                f" {len(self._images) - 1}"
            )
        shards = self._images.numbers()[images]
        if shards.size and int(shards.max()) >= len(self._shards):
            raise ChangedFileError(
                f"the index of images of {self._text.path} has shard {shards.max()}; expected 0 to"
                f" {len(self._shards) - 1}; it {NOT_PACKED}"
            )
        return shards

    def image(self, number: int) -> bytes:
        """Read an image by its number.

        Raises:
            FileNotFoundError, ValueError: if its shard is missing, or has changed since it was
                opened or packed.
        """
        if not 0 <= number < len(self._images):
            raise ValueError(
                f"{self._text.path} refers to image {number}; expected 0 to {len(self._images) - 1}"
            )
        shard, entry = self._location(number)
        data = shard.read(entry.start, entry.size)
        if zlib.crc32(data) == entry.crc32:
            return data
        if isinstance(shard, CachedShard):
            # The disk of the cache changed it; download it again.
            shard.discard()
            data = shard.read(entry.start, entry.size)
        if zlib.crc32(data) != entry.crc32:
            raise ChangedFileError(
                f"{shard.path}: image {number}, {entry.size} bytes from byte {entry.start},"
                f" {NOT_PACKED}"
            )
        return data

    def _location(self, number: int) -> tuple[ShardFile, IndexEntry]:
        """Return the shard of an image and its location there."""
        entry = self._images[number]
        if entry.number >= len(self._shards):
            raise ChangedFileError(
                f"the index of images of {self._text.path} has shard {entry.number} for image"
                f" {number}; expected 0 to {len(self._shards) - 1}; it {NOT_PACKED}"
            )
        return self._shards[entry.number], entry

    def check_image(self, number: int) -> None:
        """Check the tar header of an image and its CRC-32.

        Raises:
            FileNotFoundError, ValueError: see `image`.
        """
        file, entry = self._location(number)
        header_start = entry.start - TAR_BLOCK
        try:
            header = tarfile.TarInfo.frombuf(file.read(header_start, TAR_BLOCK), "utf-8", "strict")
            header_name_and_size = (header.name.partition(".")[0], header.size)
        except (tarfile.HeaderError, UnicodeDecodeError) as problem:
            header_name_and_size = str(problem)
        if header_name_and_size != (f"{number:09d}", entry.size):
            raise ChangedFileError(
                f"{file.path}: the tar header at byte {header_start} is not that of image {number}"
                f" ({shown(header_name_and_size)}); the shard {NOT_PACKED}"
            )
        self.image(number)


def _with_whole_spans(record: Record) -> Record:
    spans = ((0, len(record.text)),)
    char_spans = (spans,) * len(record.boxes_xyxy)
    return dataclasses.replace(record, char_spans=char_spans, label_spans=(spans,))


def _shared_fields(entry: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        return read_fields(entry)
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{where}: {problem}") from None


def _spread(count: int) -> Iterable[int]:
    """Return `SAMPLED` numbers, or fewer, from 0 to `count` - 1, evenly spaced."""
    return map(int, np.unique(np.linspace(0, count - 1, SAMPLED).astype(int))) if count else ()


def _first_images(shards: Sequence[dict[str, Any]]) -> list[int]:
    """Return the first image of each shard."""
    counts = [shard["pictures"] for shard in shards]
    starts = accumulate(counts, initial=0)
    return [start for start, count in zip(starts, counts, strict=False) if count]


def _open_file(folder: Path, entry: dict[str, Any]) -> PooledFile:
    file = PooledFile(file_of(folder, entry))
    if file.bytes != entry["bytes"]:
        raise _other_size(file, entry["bytes"])
    return file


def _other_size(file: PooledFile, expected: int) -> ValueError:
    return ValueError(
        f"{file.path} has {file.bytes} bytes, but {DESCRIPTION} lists {expected}; this is not the"
        " file that was packed"
    )


def open_pack(
    folder: Path,
    source: str,
    split: str,
    *,
    objects: bool = False,
    shots: int = 0,
    whole_expression: bool = False,
    masks: bool = False,
    on_error: str = "raise",
) -> Sequence[Record]:
    """Open one source and split of a packed folder.

    Args:
        folder: folder with `pack.json`.
        source: source that was packed. For a named dataset such as "coco_karpathy", the kind of
            its records ("captions") is also tried.
        split: split that was packed.
        objects: if True, also set `Record.objects`, for metrics.
        shots: number of images per class, by ascending id; 0 means all images.
        whole_expression: if True, make spans of referring expressions cover the whole text.
        masks: if True, also set `Record.masks` of objects with boxes, as the source "instances"
            does.
        on_error: ignored; errors were handled when the folder was packed.

    Raises:
        FileNotFoundError: if the folder has no such source and split.
        ValueError: if a file has changed since it was packed.
    """
    parts = read_description(folder)["parts"]
    names = (source, SOURCES[source].of or source)
    matching = [
        part for name in names for part in parts if (part["source"], part["split"]) == (name, split)
    ]
    if not matching:
        have = shown_names([f"{part['source']} for split {part['split']}" for part in parts])
        raise FileNotFoundError(
            f"packed folder {folder} has no {source} for split {shown(split)}; it has {have}"
        )
    # Sources that have masks only as an option are of a kind without them.
    masks = masks or "masks" not in SOURCES[source].options
    records = PackedRecords(
        folder, matching[0], objects=objects, whole=whole_expression, masks=masks
    )
    if shots:
        records.lines = _choose_shots(records, shots)
    return records


def _choose_shots(records: PackedRecords, shots: int) -> list[int]:
    """Choose images for few-shot training in the same way as `coco_folders`."""
    counts: Counter[int] = Counter()
    kept, numbered = [], []
    for index, record in enumerate(records):
        number = record.key.rpartition("/")[2]
        # Ids have at most 19 digits.
        value = int(number) if number.isdecimal() and len(number) < 20 else 0
        numbered.append((value, index, set(record.box_labels)))
    for _, index, labels in sorted(numbered, key=lambda one: one[:2]):
        if any(counts[label] < shots for label in labels):
            kept.append(index)
            counts.update(labels)
    return sorted(kept)
