"""Indexes of a packed folder: where each record and each image is.

An index is a flat array of `ENTRY`, read with `pread` at the entry that is needed. Opening one
takes no time and no memory for any number of records, and all ranks of a node share its pages in
the page cache. It is not mapped: pages mapped by one process count as its own memory, and reading a
mapped page of a file that was truncated kills the process.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fiber.data.storage.file_pool import ChangedFileError, PooledFile
from fiber.data.storage.pack_description import NOT_PACKED

#: Entry of an index, little-endian.
ENTRY = np.dtype([("start", "<u8"), ("bytes", "<u8"), ("number", "<u4"), ("crc32", "<u4")])
_ENTRY = struct.Struct("<QQII")
#: Entries that are read at a time for a whole column.
_CHUNK = 1 << 16
#: Size of a tar header in bytes.
TAR_BLOCK = 512


class IndexEntry(NamedTuple):
    """Location of a record's line or of an image."""

    #: First byte in the file.
    start: int
    #: Length in bytes.
    size: int
    #: Shard of an image, or first image of a record.
    number: int
    #: CRC-32 of the bytes.
    crc32: int


def pack_entry(start: int, size: int, number: int, crc32: int) -> bytes:
    """Return the bytes of an entry; see `IndexEntry`."""
    return _ENTRY.pack(start, size, number, crc32)


class FlatIndex:
    """Index of the records or the images of a split: a file of `ENTRY`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it has another size.
    """

    def __init__(self, path: Path, count: int) -> None:
        self._file, self._count = PooledFile(path), count
        if self._file.bytes != count * ENTRY.itemsize:
            raise ValueError(
                f"{path} has {self._file.bytes} bytes; expected {count * ENTRY.itemsize} for"
                f" {count} entries"
            )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> IndexEntry:
        """Read an entry; raise ValueError or OSError if the file has changed."""
        return IndexEntry(*_ENTRY.unpack(self._file.read(index * _ENTRY.size, _ENTRY.size)))

    def line(self, index: int) -> IndexEntry:
        """Read the entry of a record, whose line starts where that of the record before ends.

        So no two records share bytes, and reading all takes time that is linear in their size.

        Raises:
            ValueError: if it starts elsewhere, or the file has changed.
            OSError: if the file has changed.
        """
        first = max(index - 1, 0)
        data = self._file.read(first * _ENTRY.size, (index + 1 - first) * _ENTRY.size)
        *before, entry = (IndexEntry(*each) for each in _ENTRY.iter_unpack(data))
        expected = before[0].start + before[0].size if before else 0
        if entry.start != expected:
            raise ChangedFileError(
                f"{self._file.path}: record {index} starts at byte {entry.start}, but the one"
                f" before ends at byte {expected}; the index {NOT_PACKED}"
            )
        return entry

    def numbers(self) -> np.ndarray:
        """Return `number` of all entries, (N,) uint32."""
        out = np.empty(self._count, dtype=np.uint32)
        for start in range(0, self._count, _CHUNK):
            count = min(_CHUNK, self._count - start)
            content = self._file.read(start * ENTRY.itemsize, count * ENTRY.itemsize)
            out[start : start + count] = np.frombuffer(content, dtype=ENTRY)["number"]
        return out
