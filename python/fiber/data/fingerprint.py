"""Fingerprints of records: hashes by which a loader recognizes its data.

All fields of a record count, except `objects`, which only metrics use. Images are not read: a file
or a location in a shard counts by its path, relative to the folder of the first image, so that a
data folder may be moved; image bytes count by their length and the last `TAIL_BYTES`.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable
from itertools import chain
from typing import Any

from fiber.data.record import ConcatRecords, LazyImages, Record, RecordSet

#: Length of a fingerprint in characters.
FINGERPRINT_LENGTH = 16
#: Bytes at the end of an image that are hashed; they differ between images.
TAIL_BYTES = 4096
#: Number of records hashed, evenly spaced, if access to a record reads its images.
SPREAD_RECORDS = 64


class Fingerprint:
    """Incremental hash of records."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=FINGERPRINT_LENGTH // 2)
        # Not repr, whose escapes depend on the Unicode version of Python.
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
        # Shared tuples compare by identity first, so that thousands of names cost nothing.
        is_known = labels == self._labels
        self._labels = labels
        images = record.images
        stored = images.locations if isinstance(images, LazyImages) else images
        described, tails = self._describe(stored)
        # Readers of annotation files use the path of the image as its id.
        is_path = isinstance(stored[0], str | os.PathLike) and record.image_id == os.fspath(
            stored[0]
        )
        # Each line has the lengths of the binary data after it.
        line = (
            record.key,
            record.text,
            None if is_path else record.image_id,
            described,
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
        for tail in tails:
            self._digest.update(tail)
        if record.boxes_xyxy:
            self._digest.update(array("d", chain.from_iterable(record.boxes_xyxy)).tobytes())

    def add_fact(self, *values: Any) -> None:
        """Add plain values."""
        self._digest.update(self._encode(values).encode() + b"\n")

    def text(self) -> str:
        """Return the fingerprint of all that was added."""
        return self._digest.hexdigest()

    def _describe(self, images: Iterable[Any]) -> tuple[list[Any], list[bytes]]:
        """Return JSON values of images, and the last bytes of those given as bytes."""
        described, tails = [], []
        for image in images:
            if isinstance(image, bytes):
                described.append(len(image))
                tails.append(image[-TAIL_BYTES:])
            elif isinstance(image, str | os.PathLike):
                described.append(self._relative(os.fspath(image)))
            else:
                described.append(image)
        return described, tails

    def _relative(self, path: Any) -> Any:
        """Return [folder relative to the first one, file name]."""
        folder, _, name = os.fsdecode(path).rpartition("/")
        relative = self._folders.get(folder)
        if relative is None:
            if self._first_folder is None:
                self._first_folder = folder
            relative = os.path.relpath(folder or ".", self._first_folder or ".")
            self._folders[folder] = relative
        return [relative, name]


def _plain(value: Any) -> Any:
    """Convert a NumPy scalar to Python; anything else that JSON cannot hold to its text."""
    return value.item() if hasattr(value, "item") else str(value)


def fingerprint_of(records: RecordSet) -> str:
    """Return a hash of all records in order.

    If a set has a string `fingerprint`, as packed folders do, that is hashed with the number of
    records, the first and the last one. If the records of a set other than a list hold image bytes,
    only `SPREAD_RECORDS` of them are hashed, since each access reads an image.
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
    """Add a record, or mark it as unreadable; return whether it has image bytes."""
    try:
        record = records[index]
    except (OSError, ValueError):
        # The loader handles it as `on_error` says.
        out.add_fact("unreadable")
        return False
    out.add(record)
    if isinstance(record.images, LazyImages):
        return False
    return any(isinstance(image, bytes) for image in record.images)
