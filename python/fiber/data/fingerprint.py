"""Fingerprints of records, by which a loader tells data from other data.

A record's part is all that its sample is made from: every field but `objects`, which metrics alone
use. Pictures are not read. Of one in a file or in a shard its place counts; paths are taken from
the folder of the first picture on, so that a folder of data may be moved. Of one that is there as
bytes their number and the last `TAIL_BYTES` count.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable
from itertools import chain
from typing import Any

from fiber.data.record import ConcatRecords, Record, RecordSet, StoredPictures

#: Characters of a fingerprint.
FINGERPRINT_LENGTH = 16
#: Bytes at the end of a picture that count: those of other pictures are others there.
TAIL_BYTES = 4096
#: Records that are looked at, spread over all, where looking at one reads its pictures.
SPREAD_RECORDS = 64


class Fingerprint:
    """A hash of records that are added one after the other."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=FINGERPRINT_LENGTH // 2)
        # JSON and not repr, which escapes as the version of Python knows Unicode.
        self._encode = json.JSONEncoder(
            check_circular=False, separators=(",", ":"), default=_plain
        ).encode
        self._first_folder: str | None = None
        #: For each folder of pictures the way there from the first one.
        self._folders: dict[str, str] = {}
        #: Labels of the record before, which most often are the same.
        self._labels: tuple[Any, ...] = ()

    def add(self, record: Record) -> None:
        """Add a record, without reading its pictures."""
        labels = (record.labels, record.label_spans, record.label_ids, record.label_groups)
        # Compared by identity first, so that thousands of names cost nothing where they are shared.
        is_known = labels == self._labels
        self._labels = labels
        images = record.images
        stored = images.places if isinstance(images, StoredPictures) else images
        pictures, tails = self._pictures(stored)
        # Readers of annotation files give the path of the picture as its id.
        is_path = isinstance(stored[0], str | os.PathLike) and record.image_id == os.fspath(
            stored[0]
        )
        # Each line tells how much of what follows is its own.
        line = (
            record.key,
            record.text,
            None if is_path else record.image_id,
            pictures,
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
        """Give the fingerprint of what was added so far."""
        return self._digest.hexdigest()

    def _pictures(self, images: Iterable[Any]) -> tuple[list[Any], list[bytes]]:
        """Give what is said of pictures, and the ends of those that are bytes."""
        said, tails = [], []
        for image in images:
            if isinstance(image, bytes):
                said.append(len(image))
                tails.append(image[-TAIL_BYTES:])
            elif isinstance(image, str | os.PathLike):
                said.append(self._place(os.fspath(image)))
            else:
                said.append(image)
        return said, tails

    def _place(self, path: Any) -> Any:
        """Give the way to a file from the folder of the first one."""
        folder, _, name = os.fsdecode(path).rpartition("/")
        way = self._folders.get(folder)
        if way is None:
            if self._first_folder is None:
                self._first_folder = folder
            way = os.path.relpath(folder or ".", self._first_folder or ".")
            self._folders[folder] = way
        return [way, name]


def _plain(value: Any) -> Any:
    """Give a number of NumPy's as one of Python's; anything else that JSON has not by its text."""
    return value.item() if hasattr(value, "item") else str(value)


def fingerprint_of(records: RecordSet) -> str:
    """Give a hash of all records in their order.

    A set with a text `fingerprint` of its own, as packed folders have, is believed: beside it the
    number of records, the first and the last one count. Of a set that is no list and whose records
    bring the bytes of their pictures, `SPREAD_RECORDS` are looked at, since each one reads a
    picture. One that cannot be read counts as such.
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
    """Add a record, or that it cannot be read; returns whether it brings bytes of pictures."""
    try:
        record = records[index]
    except (OSError, ValueError):
        # What passes do about it is for `on_error` to say.
        out.add_fact("unreadable")
        return False
    out.add(record)
    if isinstance(record.images, StoredPictures):
        return False
    return any(isinstance(image, bytes) for image in record.images)
