"""Packed folders: tar shards of images with an index of every record.

    pack.json                     shards, parts, counts, SHA-256 checksums of all files, fingerprint
    train-000000.tar              WebDataset samples: an image, and .json with its annotations
    index/train-pictures.json     location of each image: [shard, first byte, bytes]
    index/train-crc32.json        CRC-32 of each image; not in folders of earlier versions
    index/train-captions.jsonl    one record per line, in order, with image numbers

`fiber.data.tools.pack` writes such folders. A record that is read equals the one that was
packed, except that its images are bytes, and a path in `image_id` is relative to the source folder.

Opening a folder checks pack.json, the index, the sizes of the shards, and the tar headers and
CRC-32s of `SAMPLED_IMAGES` images and of the first one of every shard. Every image that is read
later is checked by its CRC-32. `fiber data inspect --verify` reads all files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fiber.atomic_io import JSON_ERRORS
from fiber.data.record import LazyImages, Record, RecordSequence, TrueObjects
from fiber.data.storage.file_pool import ChangedFileError, PooledFile

DESCRIPTION = "pack.json"
FORMAT, VERSION = "fiber pack", 1
#: Number of images, evenly spaced over a split, that are checked when it is opened.
SAMPLED_IMAGES = 64
#: Size of a tar header in bytes.
TAR_BLOCK = 512
_NOT_PACKED = "has changed since the folder was packed; pack the data again"
_EARLIER = (
    f"{DESCRIPTION} is of an earlier version, without checksums of images; some changes of a shard"
    " are found by `fiber data inspect --verify` only"
)
#: Fields that many records may share, such as the prompt of all classes.
SHARED = ("text", "labels", "label_spans", "label_ids", "label_groups")
#: Fields of the description that are read, with their types.
_FIELDS = {"fingerprint": str, "shards": list, "parts": list}
_SHARD_FIELDS = {"file": str, "split": str, "bytes": int}
_PART_FIELDS = {
    **dict.fromkeys(("source", "split", "file", "sha256"), str),
    **dict.fromkeys(("counts", "counts_of_objects"), dict),
    **dict.fromkeys(("notes", "classes", "shared"), list),
    "records": int,
}
_ENTRY_FIELDS = {
    "shards": _SHARD_FIELDS,
    "indexes": dict.fromkeys(("split", "file", "sha256"), str),
    "parts": _PART_FIELDS,
    "files": {"file": str, "sha256": str},
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
        stored = found["fingerprint"]
    except (*JSON_ERRORS, KeyError, TypeError) as problem:
        raise ValueError(
            f"{path} does not describe a packed folder ({problem}); expected format {FORMAT!r},"
            f" version {VERSION}"
        ) from None
    if stored != fingerprint_of_content(found):
        raise ValueError(f"{path} does not have the hash {stored!r:.80} and {_NOT_PACKED}")
    return found


def _check_description(found: dict[str, Any]) -> None:
    """Check the types of the fields that are read, and that splits are parts of file names."""
    _check_fields(DESCRIPTION, found, _FIELDS)
    _check_fields(
        DESCRIPTION, {"indexes": [], "files": [], **found}, {"indexes": list, "files": list}
    )
    for name, fields in _ENTRY_FIELDS.items():
        for index, entry in enumerate(found.get(name, ())):
            _check_fields(f"{name}[{index}]", entry, fields)
            split = entry.get("split", "")
            if "/" in split or "\0" in entry["file"] + split:
                raise ValueError(f"{name}[{index}] has split {split!r:.80}")
    for index, part in enumerate(found["parts"]):
        for number, shared in enumerate(part["shared"]):
            _check_fields(f"parts[{index}].shared[{number}]", shared, {})


def _check_fields(where: str, entry: Any, fields: dict[str, type]) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is of type {type(entry).__name__}; expected an object")
    for name, kind in fields.items():
        value = entry.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(
                f"{where}.{name} is {value!r:.40}; expected a value of type {kind.__name__}"
            )


def fingerprint_of_content(description: dict[str, Any]) -> str:
    """Return the fingerprint of a packed folder: the SHA-256 of pack.json without this field."""
    content = {name: value for name, value in description.items() if name != "fingerprint"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_description(folder: Path) -> dict[str, Any]:
    """Read `pack.json`.

    Raises:
        ValueError: if it does not describe a packed folder, or not the one that was packed.
    """
    path = folder / DESCRIPTION
    return _read_description(path, path.stat().st_mtime_ns)


def file_of(folder: Path, entry: dict[str, Any]) -> Path:
    """Return the path of a file in a packed folder; raise ValueError if it is outside of it."""
    name = Path(entry["file"])
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{folder / DESCRIPTION} names file {str(name)!r}, outside of {folder}")
    return folder / name


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

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not the one that was packed.
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
        self._index = PooledFile(file_of(folder, part))
        self._starts = _line_starts(self._index, part["records"], part["sha256"])
        #: Line index of each record.
        self.lines: Sequence[int] = range(part["records"])
        shards = [shard for shard in description["shards"] if shard["split"] == split]
        self._shards = [_open_shard(file_of(folder, shard), shard["bytes"]) for shard in shards]
        numbers = [
            _numbers(file_of(folder, index), index["sha256"], "numbers")
            for index in description.get("indexes", ())
            if index["split"] == split
        ]
        if len(numbers) == 2:
            locations, self._crc32s = numbers
        elif numbers:
            found = f"{folder / DESCRIPTION} lists {len(numbers)} indexes of images of {split!r}"
            raise ValueError(f"{found}; expected 2")
        else:
            self.notes.append(_EARLIER)
            path = folder / f"index/{split}-pictures.json"
            locations, self._crc32s = _numbers(path, None, "image locations"), None
        self._locations = self._checked(locations, folder / DESCRIPTION)
        sampled = np.linspace(0, len(self._locations) - 1, SAMPLED_IMAGES).astype(int)
        firsts = np.unique(self._locations[:, 0], return_index=True)[1]
        for number in np.union1d(sampled, firsts) if len(self._locations) else ():
            self.check_image(int(number))

    def __len__(self) -> int:
        return len(self.lines)

    def _record(self, index: int) -> Record:
        line = self.lines[index]
        start, end = int(self._starts[line]), int(self._starts[line + 1])
        try:
            entry = json.loads(self._index.read(start, end - start))
            if (shared := entry.pop("shared", None)) is not None:
                entry |= self._shared[shared]
            numbers = tuple(entry.pop("images"))
            if not self._objects:
                entry.pop("objects", None)
            record = from_entry(entry, LazyImages(self.image, numbers))
        except (*JSON_ERRORS, KeyError, TypeError, IndexError, AttributeError) as problem:
            raise ValueError(f"{self._index.path}: line {line + 1}: {problem}") from None
        if not self._whole:
            return record
        spans = ((0, len(record.text)),)
        char_spans = (spans,) * len(record.boxes_xyxy)
        return dataclasses.replace(record, char_spans=char_spans, label_spans=(spans,))

    @property
    def num_images(self) -> int:
        """Number of images of the split."""
        return len(self._locations)

    def image(self, number: int) -> bytes:
        """Read an image by its number.

        Raises:
            FileNotFoundError, ValueError: if its shard is missing, or has changed since it was
                opened or packed.
        """
        if not isinstance(number, int) or not 0 <= number < len(self._locations):
            raise ValueError(
                f"{self._index.path} refers to image {number!r:.40}; expected 0 to"
                f" {len(self._locations) - 1}"
            )
        shard, start, size = (int(value) for value in self._locations[number])
        data = self._shards[shard].read(start, size)
        if self._crc32s is not None and zlib.crc32(data) != int(self._crc32s[number]):
            raise ChangedFileError(
                f"{self._shards[shard].path}: image {number}, {size} bytes from byte {start},"
                f" {_NOT_PACKED}"
            )
        return data

    def check_image(self, number: int) -> None:
        """Check the tar header of an image, and its CRC-32 unless the folder has none.

        Raises:
            FileNotFoundError, ValueError: see `image`.
        """
        shard, start, size = (int(value) for value in self._locations[number])
        file, place = self._shards[shard], start - TAR_BLOCK
        try:
            header = tarfile.TarInfo.frombuf(file.read(place, TAR_BLOCK), "utf-8", "strict")
            found = (header.name.partition(".")[0], header.size)
        except (tarfile.HeaderError, UnicodeDecodeError) as problem:
            found = str(problem)
        if found != (f"{number:09d}", size):
            raise ChangedFileError(
                f"{file.path}: the tar header at byte {place} is not that of image {number}"
                f" ({found}); the shard {_NOT_PACKED}"
            )
        if self._crc32s is not None:
            self.image(number)

    def _checked(self, locations: np.ndarray, description: Path) -> np.ndarray:
        """Return (N, 3) image locations, all of which are within their shards."""
        count = len(locations)
        if locations.size != 3 * count or (self._crc32s is not None and count != self._crc32s.size):
            raise ValueError(f"{description} does not have three numbers and a CRC-32 per image")
        locations = locations.reshape(-1, 3)
        sizes = np.array([shard.bytes for shard in self._shards] or [0])
        shards, starts, lengths = locations.T
        wrong = (shards < 0) | (shards >= len(self._shards)) | (starts < TAR_BLOCK) | (lengths < 0)
        wrong |= lengths > sizes[np.where(wrong, 0, shards)] - starts
        if wrong.any():
            number = int(wrong.argmax())
            raise ValueError(
                f"{description}: image {number} is at {locations[number].tolist()} (shard, first"
                f" byte, bytes), outside the {len(self._shards)} shards"
            )
        return locations


def _open_shard(path: Path, expected: int) -> PooledFile:
    file = PooledFile(path)
    if file.bytes != expected:
        raise ValueError(
            f"{path} has {file.bytes} bytes, but {DESCRIPTION} lists {expected}; this is not the"
            " shard that was packed"
        )
    return file


def _line_starts(file: PooledFile, expected: int, sha256: str) -> np.ndarray:
    """Return the offset of each line of an index, plus the end offset."""
    content = file.read(0, file.bytes)
    data = np.frombuffer(content, dtype=np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(data == ord("\n")) + 1]).astype(np.int64)
    if len(starts) - 1 != expected or starts[-1] != file.bytes:
        raise ValueError(
            f"{file.path} has {len(starts) - 1} lines, but {DESCRIPTION} lists {expected}; this is"
            " not the index that was packed"
        )
    _check_sha256(file.path, content, sha256)
    return starts


def _numbers(path: Path, sha256: str | None, what: str) -> np.ndarray:
    """Read a JSON list of integers, or of lists of integers, after comparing its checksum."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    content = path.read_bytes()
    if sha256 is not None:
        _check_sha256(path, content, sha256)
    try:
        return np.atleast_1d(np.array(json.loads(content), dtype=np.int64))
    except (*JSON_ERRORS, TypeError, OverflowError) as problem:
        raise ValueError(f"{path} is not a valid list of {what} ({problem})") from None


def _check_sha256(path: Path, content: bytes, expected: str) -> None:
    if hashlib.sha256(content).hexdigest() != expected:
        raise ValueError(
            f"{path} does not have the SHA-256 checksum in {DESCRIPTION}; it {_NOT_PACKED}"
        )


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
    try:
        records = PackedRecords(folder, found[0], objects=objects, whole=whole_expression)
    except (KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"{folder / DESCRIPTION} lacks a field ({problem!r})") from None
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
