"""Zip archives of torch.save: records in place of tensors, and where the storages are."""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from typing import IO, Any, NamedTuple

import torch

from fiber.inert_pickle import read_pickle
from fiber.messages import shown


class NotACheckpointError(ValueError):
    """Raised for an intact archive that torch.save did not write."""


class Archive(NamedTuple):
    """Content of an archive."""

    #: Unpickled value; see `Pickle.content`.
    content: Any
    #: Offset and size of each storage in bytes, by key.
    storages: dict[str, tuple[int, int]]


class FilePart(io.RawIOBase):
    """Bytes `first` to `first + size` of an open file, as a file of their own."""

    def __init__(self, file: IO[bytes], first: int, size: int) -> None:
        super().__init__()
        self._file, self._first, self._size, self._at = file, first, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte; `whence` is as in `io.IOBase.seek`."""
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}
        if starts[whence] + offset < 0:
            raise ValueError(f"cannot seek to byte {starts[whence] + offset}")
        self._at = starts[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read up to the end of the part."""
        wanted = min(len(buffer), max(self._size - self._at, 0))
        self._file.seek(self._first + self._at)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_archive(file: Any, size: int, source: Any) -> Archive:
    """Read an archive.

    Args:
        file: the open file.
        size: its size in bytes.
        source: the same file as torch takes it: a path or a file.

    Raises:
        NotACheckpointError: if it is an archive of another kind.
        ValueError: or another error of zipfile or `read_pickle`, if it is damaged or hostile.
    """
    with zipfile.ZipFile(file) as archive:
        # Records are named by their path inside the archive's only top-level folder.
        records = {each.filename.partition("/")[2]: each for each in archive.infolist()}
        names = {name.rpartition("/")[2] for name in archive.namelist()}
        if "constants.pkl" in names or any(name.startswith("code/") for name in records):
            raise NotACheckpointError(
                "is a TorchScript program; expected weights written by torch.save"
                " (docs/checkpoints.md says how to take them out of OpenAI's CLIP files)"
            )
        if "data.pkl" not in records:
            raise NotACheckpointError(
                "is a zip archive without data.pkl; expected a file written by torch.save"
            )
        if len(records) < len(archive.infolist()):
            raise ValueError("the archive contains multiple members with the same name")
        for name, record in records.items():
            _check_record(name, record, size)
        if sum(record.file_size for record in records.values()) > size:
            raise ValueError("the files of the archive overlap")
        # A crafted file can have a second directory, which other tools would read.
        members = torch._C.PyTorchFileReader(source).get_all_records()
        if sorted(members) != sorted(records):
            raise ValueError("the archive has two directories, which list different members")
        order = archive.read(records["byteorder"]) if "byteorder" in records else b"little"
        if order.decode("ascii") != sys.byteorder:
            raise ValueError(f"unsupported byte order {shown(order)}; expected {sys.byteorder!r}")
        content, _ = read_pickle(io.BytesIO(archive.read(records["data.pkl"])))
        storages = {
            name.removeprefix("data/"): (_first_byte(file, record), record.file_size)
            for name, record in records.items()
            if name.startswith("data/")
        }
    return Archive(content, storages)


def _check_record(name: str, record: zipfile.ZipInfo, size: int) -> None:
    """Check that a record is stored as it is, in a file of `size` bytes."""
    stored = record.compress_type == zipfile.ZIP_STORED and not record.flag_bits & 1
    if not stored or record.compress_size != record.file_size:
        raise ValueError(f"{shown(name)} is compressed or encrypted, which is not supported")
    if record.header_offset + record.file_size > size:
        raise ValueError(
            f"{shown(name)} ({record.file_size} bytes) extends past the end of the file"
        )


def _first_byte(file: Any, record: zipfile.ZipInfo) -> int:
    """Return the byte offset of an archive member's content, which follows the local header."""
    file.seek(record.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise ValueError(
            f"{shown(record.filename)} has no local header at byte {record.header_offset}"
        )
    name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
    return record.header_offset + 30 + name_bytes + extra_bytes
