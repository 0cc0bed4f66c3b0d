"""Packed folders: tar shards of images with an index of every record.

    pack.json                     shards, parts, counts, fingerprint
    train-000000.tar              WebDataset samples: an image, and .json with its annotations
    index/train-pictures.json     location of each image: [shard, first byte, bytes]
    index/train-captions.jsonl    one record per line, in order, with image numbers

`fiber.data.tools.pack` writes such folders. A record that is read equals the one that was
packed, except that its images are bytes, and a path in `image_id` is relative to the source folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fiber.atomic_io import JSON_ERRORS
from fiber.data.record import LazyImages, Record, RecordSequence, TrueObjects
from fiber.data.storage.file_pool import PooledFile

DESCRIPTION = "pack.json"
FORMAT, VERSION = "fiber pack", 1
#: Fields that many records may share, such as the prompt of all classes.
SHARED = ("text", "labels", "label_spans", "label_ids", "label_groups")
#: Fields of the description that are read, with their types.
_FIELDS = {"fingerprint": str, "shards": list, "parts": list}
_SHARD_FIELDS = {"file": str, "split": str, "bytes": int}
_PART_FIELDS = {
    **dict.fromkeys(("source", "split", "file"), str),
    **dict.fromkeys(("counts", "counts_of_objects"), dict),
    **dict.fromkeys(("notes", "classes", "shared"), list),
    "records": int,
}
_KARPATHY = ("coco_karpathy", "flickr30k_karpathy")
#: Source under which each named dataset is packed.
OTHER_NAMES = {
    **dict.fromkeys((*_KARPATHY, "visual_genome", "sbu", "conceptual_captions"), "captions"),
    **dict.fromkeys(("refcoco", "refcocoplus", "refcocog"), "referring"),
}
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Record)}


def is_pack(path: Path) -> bool:
    """Return whether a folder was written by `fiber data pack`."""
    return (path / DESCRIPTION).is_file()


@cache
def _read_description(path: Path, changed: int) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT or found["version"] != VERSION:
            raise ValueError(
                f"unsupported format {found['format']!r}, version {found['version']!r}"
            )
        _check_description(found)
    except (*JSON_ERRORS, KeyError, TypeError) as problem:
        raise ValueError(
            f"{path} does not describe a packed folder ({problem}); expected format {FORMAT!r},"
            f" version {VERSION}"
        ) from None
    return found


def _check_description(found: dict[str, Any]) -> None:
    """Check the types of the fields that are read, and that all files are inside the folder."""
    _check_fields(DESCRIPTION, found, _FIELDS)
    for name, fields in (("shards", _SHARD_FIELDS), ("parts", _PART_FIELDS)):
        for index, entry in enumerate(found[name]):
            where = f"{name}[{index}]"
            _check_fields(where, entry, fields)
            for field in ("file", "split"):
                place = PurePosixPath(entry[field])
                if place.is_absolute() or ".." in place.parts or "\0" in entry[field]:
                    raise ValueError(f"{where}.{field} is {entry[field]!r:.80}, outside the folder")
    for index, part in enumerate(found["parts"]):
        for number, shared in enumerate(part["shared"]):
            _check_fields(f"parts[{index}].shared[{number}]", shared, {})
        if part["records"] < 0:
            raise ValueError(f"parts[{index}].records is {part['records']}; expected 0 or more")


def _check_fields(where: str, entry: Any, fields: dict[str, type]) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is of type {type(entry).__name__}; expected an object")
    for name, kind in fields.items():
        value = entry.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            found = f"{where}.{name} is {value!r:.40}"
            raise ValueError(f"{found}; expected a value of type {kind.__name__}")


def read_description(folder: Path) -> dict[str, Any]:
    """Read `pack.json`; raise ValueError if it does not describe a packed folder."""
    path = folder / DESCRIPTION
    return _read_description(path, path.stat().st_mtime_ns)


def to_entry(record: Record) -> dict[str, Any]:
    """Convert a record to a JSON-serializable dict, omitting images and default values."""
    values = {name: getattr(record, name) for name in _DEFAULTS if name != "images"}
    entry = {name: value for name, value in values.items() if value != _DEFAULTS[name]}
    if record.objects is not None:
        entry["objects"] = objects = dataclasses.asdict(record.objects)
        for key in ("absent", "incomplete"):
            objects[key] = None if objects[key] is None else sorted(objects[key])
    # Box spans are omitted if they equal those of the labels.
    if entry.get("char_spans") and record.char_spans == _spans_of_labels(record):
        del entry["char_spans"]
    elif record.boxes_xyxy and not record.char_spans:
        entry["char_spans"] = []
    return entry


def _spans_of_labels(record: Record) -> tuple[Any, ...]:
    if not all(label < len(record.label_spans) for label in record.box_labels):
        return ()
    return tuple(record.label_spans[label] for label in record.box_labels)


def from_entry(entry: dict[str, Any], images: tuple[Any, ...] | LazyImages) -> Record:
    """Create a record from the output of `to_entry` and its images."""
    fields = {name: _tuples(value) for name, value in entry.items()}
    if objects := entry.get("objects"):
        objects = {name: _tuples(value) for name, value in objects.items()}
        for key in ("absent", "incomplete"):
            objects[key] = None if objects[key] is None else frozenset(objects[key])
        fields["objects"] = TrueObjects(**objects)
    if "char_spans" not in fields and "label_spans" in fields:
        spans = fields["label_spans"]
        fields["char_spans"] = tuple(spans[label] for label in fields.get("box_labels", ()))
    return Record(images=images, **fields)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class PackedRecords(RecordSequence):
    """Records of one source and split of a packed folder, read on access.

    Args:
        folder: packed folder.
        part: entry of `parts` in its description.
        objects: if True, also set `Record.objects`, for metrics.
        whole: if True, make all spans cover the whole text.

    Attributes:
        fingerprint: fingerprint of the folder.
        counts: number of entries skipped when the folder was packed, by kind.
        notes: notes that the reader reported when the folder was packed.
        classes: class names of the boxes.
    """

    def __init__(
        self, folder: Path, part: dict[str, Any], *, objects: bool = False, whole: bool = False
    ) -> None:
        description = read_description(folder)
        split = part["split"]
        self.fingerprint: str = description["fingerprint"]
        self.counts: dict[str, int] = dict(part["counts_of_objects" if objects else "counts"])
        self.notes: list[str] = list(part["notes"])
        self.classes: tuple[str, ...] = tuple(part["classes"])
        self._objects, self._whole = objects, whole
        self._shared: list[dict[str, Any]] = part["shared"]
        self._index = PooledFile(folder / part["file"])
        self._starts = _line_starts(self._index, part["records"])
        #: Line index of each record.
        self.lines: Sequence[int] = range(part["records"])
        self._shards = [
            (folder / shard["file"], shard["bytes"])
            for shard in description["shards"]
            if shard["split"] == split
        ]
        self._files: dict[int, PooledFile] = {}
        self._locations = _image_locations(folder / f"index/{split}-pictures.json")

    def __len__(self) -> int:
        return len(self.lines)

    def _record(self, index: int) -> Record:
        line = self.lines[index]
        start, end = int(self._starts[line]), int(self._starts[line + 1])
        stored = self._index.read(start, end - start)
        try:
            entry = json.loads(stored)
            if (shared := entry.pop("shared", None)) is not None:
                entry |= self._shared[shared]
            numbers = tuple(entry.pop("images"))
            if not all(type(number) is int for number in numbers):
                raise ValueError(f"images is {numbers!r:.40}; expected numbers")
            if not self._objects:
                entry.pop("objects", None)
            record = from_entry(entry, LazyImages(self.image, numbers))
        except (*JSON_ERRORS, KeyError, TypeError, IndexError, AttributeError) as problem:
            raise ValueError(
                f"{self._index.path}: line {line + 1} is not a packed record"
                f" ({type(problem).__name__}: {problem})"
            ) from None
        if not self._whole:
            return record
        spans = ((0, len(record.text)),)
        char_spans = (spans,) * len(record.boxes_xyxy)
        return dataclasses.replace(record, char_spans=char_spans, label_spans=(spans,))

    def image(self, number: int) -> bytes:
        """Read an image by its number.

        Raises:
            FileNotFoundError, ValueError: if its shard is missing or has changed.
        """
        if not 0 <= number < len(self._locations):
            raise ValueError(
                f"{self._index.path} names image {number}; expected 0 to {len(self._locations) - 1}"
            )
        shard, start, size = (int(value) for value in self._locations[number])
        if not 0 <= shard < len(self._shards):
            raise ValueError(
                f"{self._index.path}: image {number} is in shard {shard}; expected 0 to"
                f" {len(self._shards) - 1}"
            )
        if shard not in self._files:
            path, expected = self._shards[shard]
            file = PooledFile(path)
            if file.bytes != expected:
                raise ValueError(
                    f"{path} has {file.bytes} bytes, but {DESCRIPTION} lists {expected}; this is"
                    " not the shard that was packed"
                )
            self._files[shard] = file
        return self._files[shard].read(start, size)


def _line_starts(file: PooledFile, expected: int) -> np.ndarray:
    """Return the offset of each line of an index, plus the end offset."""
    data = np.frombuffer(file.read(0, file.bytes), dtype=np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(data == ord("\n")) + 1]).astype(np.int64)
    if len(starts) - 1 != expected or starts[-1] != file.bytes:
        raise ValueError(
            f"{file.path} has {len(starts) - 1} lines, but {DESCRIPTION} lists {expected}; this is"
            " not the index that was packed"
        )
    return starts


def _image_locations(path: Path) -> np.ndarray:
    try:
        found = np.array(json.loads(path.read_text(encoding="ascii")), dtype=np.int64)
        return found.reshape(-1, 3)
    except (ValueError, OverflowError, TypeError) as problem:
        raise ValueError(f"{path} is not a valid list of image locations ({problem})") from None


def open_pack(
    folder: Path,
    source: str,
    split: str,
    *,
    objects: bool = False,
    shots: int = 0,
    whole_expression: bool = False,
    on_error: str = "raise",
) -> Sequence[Record]:
    """Open one source and split of a packed folder.

    Args:
        folder: folder with `pack.json`.
        source: source that was packed. For a named dataset such as "coco_karpathy", the generic
            source ("captions") is also tried.
        split: split that was packed.
        objects: if True, also set `Record.objects`, for metrics.
        shots: number of images per class, by ascending id; 0 means all images.
        whole_expression: if True, make spans of referring expressions cover the whole text.
        on_error: ignored; errors were handled when the folder was packed.

    Raises:
        FileNotFoundError: if the folder has no such source and split.
        ValueError: if a file has changed since it was packed.
    """
    parts = read_description(folder)["parts"]
    names = (source, OTHER_NAMES.get(source, source))
    found = [
        part for name in names for part in parts if (part["source"], part["split"]) == (name, split)
    ]
    if not found:
        have = ", ".join(f"{part['source']} for {part['split']!r}" for part in parts) or "nothing"
        raise FileNotFoundError(
            f"packed folder {folder} has no {source} for split {split!r}; it has {have}"
        )
    records = PackedRecords(folder, found[0], objects=objects, whole=whole_expression)
    if shots:
        records.lines = _choose_shots(records, shots)
    return records


def _choose_shots(records: PackedRecords, shots: int) -> list[int]:
    """Choose images for few-shot training in the same way as `coco_folders`."""
    counts: Counter[int] = Counter()
    kept, numbered = [], []
    for index, record in enumerate(records):
        number = record.key.rpartition("/")[2]
        numbered.append((int(number) if number.isdecimal() else 0, index, set(record.box_labels)))
    for _, index, shown in sorted(numbered, key=lambda one: one[:2]):
        if any(counts[label] < shots for label in shown):
            kept.append(index)
            counts.update(shown)
    return sorted(kept)
