"""Indexes of a packed folder: where each record and each image is.

In version 2 an index is a flat array of `ENTRY`, read with `pread` at the entry that is needed.
Opening one takes no time and no memory for any number of records, and all ranks of a node share
its pages in the page cache. It is not mapped: pages mapped by one process count as its own memory,
and reading a mapped page of a file that was truncated kills the process.

In version 1 an index is JSON, or follows from the lines of a file; it is held in memory.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from fiber.atomic_io import JSON_ERRORS, check_regular_file
from fiber.data.formats.json_values import is_integer
from fiber.data.storage.file_pool import PooledFile
from fiber.data.storage.pack_description import DESCRIPTION, NOT_PACKED
from fiber.messages import printable, shown

#: Entry of an index in version 2, little-endian.
ENTRY = np.dtype([("start", "<u8"), ("bytes", "<u8"), ("number", "<u4"), ("crc32", "<u4")])
_ENTRY = struct.Struct("<QQII")
#: Entries that are read at a time for a whole column.
_CHUNK = 1 << 16
#: Maximum size of an index of version 1, which is held in memory; about 30 million images.
MAX_JSON_INDEX_BYTES = 1 << 30
#: Size of a tar header in bytes.
TAR_BLOCK = 512


class IndexEntry(NamedTuple):
    """Location of a record's line or of an image."""

    #: First byte in the file.
    start: int
    #: Length in bytes.
    size: int
    #: Shard of an image, or first image of a record; None for the records of version 1.
    number: int | None
    #: CRC-32 of the bytes; None for folders of an earlier version.
    crc32: int | None


class PackIndex(Protocol):
    """Index of the records or the images of a split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> IndexEntry: ...

    def numbers(self) -> np.ndarray:
        """Return `number` of all entries."""
        ...


def pack_entry(start: int, size: int, number: int, crc32: int) -> bytes:
    """Return the bytes of an entry; see `IndexEntry`."""
    return _ENTRY.pack(start, size, number, crc32)


class FlatIndex:
    """Index of version 2: a file of `ENTRY`.

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

    def numbers(self) -> np.ndarray:
        """Return `number` of all entries, (N,) uint32."""
        out = np.empty(self._count, dtype=np.uint32)
        for start in range(0, self._count, _CHUNK):
            count = min(_CHUNK, self._count - start)
            content = self._file.read(start * ENTRY.itemsize, count * ENTRY.itemsize)
            out[start : start + count] = np.frombuffer(content, dtype=ENTRY)["number"]
        return out


class LineIndex:
    """Records of version 1: the lines of a file.

    Raises:
        ValueError: if there are not `expected` lines, or the file has another checksum.
    """

    def __init__(self, file: PooledFile, expected: int, sha256: str) -> None:
        self._file = file
        content = file.read(0, file.bytes)
        data = np.frombuffer(content, dtype=np.uint8)
        starts = np.concatenate([[0], np.flatnonzero(data == ord("\n")) + 1]).astype(np.int64)
        if len(starts) - 1 != expected or starts[-1] != file.bytes:
            raise ValueError(
                f"{file.path} has {len(starts) - 1} lines, but {DESCRIPTION} lists {expected}; this"
                " is not the index that was packed"
            )
        _check_sha256(file.path, content, sha256)
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> IndexEntry:
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        return IndexEntry(start, end - start, None, None)

    def numbers(self) -> np.ndarray:
        """Return the first image of all records, (N,) int64; reads all lines."""
        out = np.empty(len(self), dtype=np.int64)
        for index in range(len(self)):
            start, size, *_ = self[index]
            where = f"{self._file.path}: line {index + 1}"
            try:
                first = json.loads(self._file.read(start, size).decode())["images"][0]
            except (*JSON_ERRORS, KeyError, TypeError, IndexError) as problem:
                said = printable(str(problem), 200)
                raise ValueError(f"{where} has no list of images ({said})") from None
            if not is_integer(first):
                raise ValueError(f"{where} has image {shown(first)}; expected an integer")
            out[index] = first
        return out


class JsonIndex:
    """Images of version 1: lists of [shard, first byte, bytes] and of CRC-32s.

    Args:
        locations: (N, 3) int64.
        crc32s: (N,) int64, or None for folders without checksums of images.
        shard_bytes: size of each shard.
        description: path of `pack.json`, for messages.

    Raises:
        ValueError: if an array has another shape, or an image is outside the shards.
    """

    def __init__(
        self,
        locations: np.ndarray,
        crc32s: np.ndarray | None,
        shard_bytes: list[int],
        description: Path,
    ) -> None:
        count = len(locations)
        if locations.size != 3 * count or (crc32s is not None and count != crc32s.size):
            raise ValueError(f"{description} does not have three numbers and a CRC-32 per image")
        self._locations, self._crc32s = locations.reshape(-1, 3), crc32s
        sizes = np.array(shard_bytes or [0])
        shards, starts, lengths = self._locations.T
        wrong = (shards < 0) | (shards >= len(shard_bytes)) | (starts < TAR_BLOCK) | (lengths < 0)
        wrong |= lengths > sizes[np.where(wrong, 0, shards)] - starts
        if wrong.any():
            number = int(wrong.argmax())
            raise ValueError(
                f"{description}: image {number} is at {self._locations[number].tolist()} (shard,"
                f" first byte, bytes), outside the {len(shard_bytes)} shards"
            )

    def __len__(self) -> int:
        return len(self._locations)

    def __getitem__(self, index: int) -> IndexEntry:
        shard, start, size = map(int, self._locations[index])
        crc32 = None if self._crc32s is None else int(self._crc32s[index])
        return IndexEntry(start, size, shard, crc32)

    def numbers(self) -> np.ndarray:
        """Return the shard of all images, (N,) int64."""
        return self._locations[:, 0]


def read_numbers(path: Path, sha256: str | None, what: str) -> np.ndarray:
    """Read a JSON list of integers, or of lists of integers, after comparing its checksum."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    check_regular_file(path, MAX_JSON_INDEX_BYTES)
    content = path.read_bytes()
    if sha256 is not None:
        _check_sha256(path, content, sha256)
    try:
        found = json.loads(content.decode())
        if not isinstance(found, list):
            raise ValueError(f"it contains {shown(found)}")
        numbers = np.array(found) if found else np.empty(0, dtype=np.int64)
        # Integers that need more than 64 bits, floats, strings and others have other types.
        if numbers.dtype != np.int64:
            raise ValueError(f"it contains values such as {shown(found[0])}")
    except (*JSON_ERRORS, TypeError, OverflowError) as problem:
        said = printable(str(problem), 300)
        raise ValueError(
            f"{path} is not a valid list of {what} ({said}); expected integers"
        ) from None
    return numbers


def _check_sha256(path: Path, content: bytes, expected: str) -> None:
    if hashlib.sha256(content).hexdigest() != expected:
        raise ValueError(
            f"{path} does not have the SHA-256 checksum in {DESCRIPTION}; it {NOT_PACKED}"
        )
