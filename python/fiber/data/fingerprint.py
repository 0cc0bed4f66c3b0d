"""Fingerprints: hashes of records that let a loader detect whether its data has changed.

All fields of a record are hashed, except `objects`, which only metrics use. Images are not read. A
file or a location in a shard is hashed as its path relative to the first image's folder, so a data
folder may be moved; image bytes are hashed as their length and the last `TAIL_BYTES`.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from itertools import chain
from typing import Any

from fiber.data.masks.mask import IdMap
from fiber.data.record import ConcatRecords, LazyImages, Record, RecordSet

# Length of a fingerprint in bytes.
_DIGEST_BYTES = 8
#: Number of bytes hashed at the end of an image, enough to tell images apart.
TAIL_BYTES = 4096
#: Number of evenly spaced records that are hashed if accessing a record reads its images.
SPREAD_RECORDS = 64


class Fingerprint:
    """Incremental hash of records."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        # Not `repr`: its escapes depend on Python's Unicode version.
        self._encode = json.JSONEncoder(
            check_circular=False, separators=(",", ":"), default=_plain
        ).encode
        self._first_folder: str | None = None
        #: Path of each image folder relative to the first one.
        self._folders: dict[str, str] = {}
        #: Labels of the previous record, which are usually the same.
        self._labels: tuple[Any, ...] = ()

    def add(self, record: Record) -> None:
        """Add a record without reading its images."""
        labels = (record.labels, record.label_spans, record.label_ids, record.label_groups)
        # Tuples are compared by identity first, so thousands of shared names cost nothing.
        is_known = labels == self._labels
        self._labels = labels
        images: Any = record.images
        stored = images.locations if isinstance(images, LazyImages) else images
        first = stored[0]
        # Readers of annotation files use the image path as the image id.
        is_path = isinstance(first, str | os.PathLike) and record.image_id == os.fspath(first)
        # Each line contains the lengths of the binary data that follow it.
        line = (
            record.key,
            record.text,
            None if is_path else record.image_id,
            [self._describe(image) for image in stored],
            record.image_size,
            len(record.boxes_xyxy),
            record.char_spans,
            record.box_labels,
            None if is_known else labels,
            record.answers and sorted(record.answers.items()),
            record.human_answers,
            record.truth,
            record.group,
        )
        self._digest.update(self._encode(line).encode() + b"\n")
        if record.masks or record.phrases:
            self._add_masks(record)
        for image in stored:
            if isinstance(image, bytes):
                self._digest.update(image[-TAIL_BYTES:])
        if record.boxes_xyxy:
            self._digest.update(array("d", chain.from_iterable(record.boxes_xyxy)).tobytes())

    def _add_masks(self, record: Record) -> None:
        """Add the masks of a record without reading an id map, and its phrases."""
        masks: Any = record.masks
        if isinstance(masks, IdMap):
            image = masks.image
            if isinstance(image, LazyImages):
                image = image.locations[0]
            masks = [self._describe(image), *masks[1:]]
        fields = (masks, record.mask_labels, record.mask_crowd)
        line = (*fields, record.phrases, record.phrase_masks)
        if record.box_masks:
            line = (*line, record.box_masks)
        self._digest.update(self._encode(line).encode() + b"\n")

    def add_fact(self, *values: Any) -> None:
        """Add values that are not part of a record, such as a count."""
        self._digest.update(self._encode(values).encode() + b"\n")

    def text(self) -> str:
        """Return the fingerprint of everything added so far."""
        return self._digest.hexdigest()

    def _describe(self, image: Any) -> Any:
        """Describe an image as a JSON value: its length in bytes, or [relative folder, name]."""
        if isinstance(image, bytes):
            return len(image)
        if not isinstance(image, str | os.PathLike):
            return image
        folder, _, name = os.fsdecode(image).rpartition("/")
        relative = self._folders.get(folder)
        if relative is None:
            if self._first_folder is None:
                self._first_folder = folder
            relative = os.path.relpath(folder or ".", self._first_folder or ".")
            self._folders[folder] = relative
        return [relative, name]


def _plain(value: Any) -> Any:
    """Convert a NumPy scalar to a Python number, and any other non-JSON value to a string."""
    return value.item() if hasattr(value, "item") else str(value)


def fingerprint_of(records: RecordSet) -> str:
    """Return a hash of all records in order.

    For a record set with a string attribute `fingerprint`, such as a packed folder, only that
    string, the number of records, and the first and last record are hashed. If the records contain
    image bytes and are not a list, only `SPREAD_RECORDS` of them are hashed, since each access
    reads an image.
    """
    out, count = Fingerprint(), len(records)
    out.add_fact(count)
    if isinstance(own := getattr(records, "fingerprint", None), str):
        out.add_fact(own)
        for index in sorted({0, count - 1}) if count else ():
            _add_readable(out, records, index)
        return out.text()
    if isinstance(records, ConcatRecords):
        out.add_fact(*map(fingerprint_of, records.parts))
        return out.text()
    index, step, is_list = 0, 1, isinstance(records, list | tuple)
    while index < count:
        if _add_readable(out, records, index) and not is_list:
            step = max(1, count // SPREAD_RECORDS)
        index += step
    return out.text()


def _add_readable(out: Fingerprint, records: RecordSet, index: int) -> bool:
    """Add a record, or a marker if it cannot be read; return True if it contains image bytes."""
    try:
        record = records[index]
    except (OSError, ValueError):
        # The loader handles this according to `on_error`.
        out.add_fact("unreadable")
        return False
    out.add(record)
    if isinstance(record.images, LazyImages):
        return False
    return any(isinstance(image, bytes) for image in record.images)
