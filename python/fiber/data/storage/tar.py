"""Random access to the members of a tar archive.

The headers are scanned once, with `tarfile`. If possible, the offsets are cached in "<name>.index"
next to the archive, and reused as long as the archive's size and modification time stay the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from fiber.atomic_io import read_json, write_file
from fiber.data.formats.json_values import (
    is_integer,
    is_utf8,
    may_have_surrogates,
    parse_json,
    surrogate_problem,
)
from fiber.data.storage.file_pool import PooledFile
from fiber.messages import printable, shown

#: Largest extended header (long name or pax records), and largest global header, in bytes.
_MAX_EXTENDED_BYTES, _MAX_GLOBAL_BYTES = 1 << 20, 1 << 16
#: Maximum number of characters of a member's name, which is a part of the keys of its records.
_MAX_NAME = 1000
#: Maximum number of global pax records, which `tarfile` applies to every member.
_MAX_GLOBAL_RECORDS = 64
_INDEX_VERSION = 1
#: Maximum number of bytes by which an index may be longer than its archive, which has a header of
#: 512 bytes for every member.
_INDEX_BYTES = 1 << 16
#: Maximum number of kinds of skipped members and of notes in an index, and of their characters.
_MOST_NOTES, _MAX_NOTE, _MAX_KIND = 16, 5000, 100
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
#: Member types without content.
_EMPTY = (*_LINKS, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
#: More digits than a number in a pax header has. For each digit, a regular expression of `tarfile`
#: looks at all digits that follow.
_TOO_MANY_DIGITS = re.compile(rb"[0-9]{65}")
#: A pax record up to its value: its length in bytes, and its key.
_PAX_RECORD = re.compile(rb"([0-9]{1,9}) ([^=]+)=")
#: Maximum number of characters of what is wrong with an archive.
_MAX_PROBLEM = 400
#: First bytes of gzip, bzip2, xz and zstandard files.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class Member(NamedTuple):
    """A regular file in a tar archive."""

    name: str
    #: Offset of the content in bytes.
    start: int
    #: Length of the content in bytes.
    size: int


class TarFile(PooledFile):
    """A tar archive and its members.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not a valid, uncompressed and complete tar archive, or if a
            member would be extracted outside the target folder.

    Attributes:
        members: the regular files, in archive order.
        counts: number of skipped members, by kind.
        notes: warnings about the archive.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._index_path = path.with_name(f"{path.name}.index")
        self.members: list[Member] = []
        self.counts: dict[str, int] = {}
        self.notes: list[str] = []
        if not self._read_index():
            self._scan()
            self._write_index()

    def text(self, member: Member) -> str:
        """Read a text member; raise ValueError if it is not UTF-8."""
        try:
            return self.read(member.start, member.size).decode("utf-8")
        except UnicodeDecodeError as problem:
            raise ValueError(
                f"{self.path}: member {shown(member.name)} is not UTF-8 text ({problem})"
            ) from None

    def _read_index(self) -> bool:
        """Load the cached members; return False if the cache is missing, outdated or damaged.

        It may come with the archive from a stranger, so it is trusted no more than the archive:
        members have the names, and places in the file, that a scan could have found.
        """
        try:
            index = read_json(self._index_path, self.bytes + _INDEX_BYTES)
        except (OSError, ValueError):
            return False
        stamp = {"version": _INDEX_VERSION, "bytes": self.bytes, "changed_ns": self.changed}
        if not isinstance(index, dict) or any(index.get(k) != v for k, v in stamp.items()):
            return False
        counts, notes, members = (index.get(name) for name in ("counts", "notes", "members"))
        if not (_are_counts(counts) and _are_notes(notes) and isinstance(members, list)):
            return False
        if not all(map(self._is_member, members)):
            return False
        # In the order of the archive, where no two share bytes: reading all of them is linear.
        if any(start + size > after for (_, start, size), (_, after, _) in pairwise(members)):
            return False
        self.members = [Member(*each) for each in members]
        self.counts, self.notes = counts, notes
        return True

    def _is_member(self, given: Any) -> bool:
        """Return whether an entry of an index is a member that the archive may have."""
        if not isinstance(given, list) or len(given) != 3:
            return False
        name, start, size = given
        block = tarfile.BLOCKSIZE
        return (
            isinstance(name, str)
            and _clean_name(name) == name
            and is_integer(start, block, self.bytes)
            and start % block == 0
            and is_integer(size, 0, self.bytes - start)
        )

    def _write_index(self) -> None:
        """Cache the members, unless the folder is read-only."""
        stamp = {"version": _INDEX_VERSION, "bytes": self.bytes, "changed_ns": self.changed}
        content = {**stamp, "counts": self.counts, "notes": self.notes, "members": self.members}
        text = json.dumps(content)
        with contextlib.suppress(OSError):
            # `shared`, since several processes may scan the archive at the same time.
            write_file(self._index_path, lambda part: part.write_text(text, "ascii"), shared=True)

    def _scan(self) -> None:
        if self.bytes == 0:
            raise ValueError(f"{self.path} is empty; expected a tar archive")
        with self.path.open("rb") as stream:
            self.check(os.fstat(stream.fileno()))
            try:
                with tarfile.open(fileobj=stream, mode="r:", **_OPTIONS) as tar:
                    for info in tar:
                        self._add(info)
                        # `tarfile` would keep every header in memory.
                        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                    end = tar.offset
            except (tarfile.TarError, ValueError, RecursionError) as problem:
                last_block = max(stream.tell() - 1, 0) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
                raise self._error(problem, last_block) from None
            self.check(os.fstat(stream.fileno()))
        self._check_end(end)

    def _error(self, problem: object, position: int) -> ValueError:
        advice = ""
        if self.read(0, min(6, self.bytes)).startswith(_COMPRESSED):
            advice = "; decompress the file for random access"
        return ValueError(
            f"{self.path} is not a valid tar archive: {printable(str(problem), _MAX_PROBLEM)}, at"
            f" byte {position}{advice}"
        )

    def _add(self, info: tarfile.TarInfo) -> None:
        """Add a regular file, or count any other member; raise ValueError if it is invalid."""
        name, kind = info.name, info.type
        _check_utf8(name)
        clean = _clean_name(name)
        if clean is None:
            raise ValueError(
                f"unsafe member name {shown(name)}; expected a relative path without '..', of at"
                f" most {_MAX_NAME} characters"
            )
        if kind in _EMPTY and info.size:
            raise ValueError(
                f"member {shown(name)} of type {kind!r} has {info.size} bytes; expected 0"
            )
        is_sparse = kind == tarfile.GNUTYPE_SPARSE or info.issparse()
        if not is_sparse:
            _check_size(name, info.size, self.bytes - info.offset_data)
        if kind != tarfile.DIRTYPE and not name.endswith("/"):
            if info.isreg() and not is_sparse and clean:
                self.members.append(Member(clean, info.offset_data, info.size))
            else:
                what = "links" if kind in _LINKS else "members that are not regular files"
                self.counts[what] = self.counts.get(what, 0) + 1

    def _check_end(self, position: int) -> None:
        """Check that `tarfile` stopped at the end of the archive (zeros or the end of the file).

        `tarfile` also stops, without an error, at an invalid or truncated header.
        """
        if position >= self.bytes:
            self.notes.append(
                f"{self.path} has no end-of-archive marker; if the file was truncated, samples are"
                " missing"
            )
            return
        block = self.read(position, min(tarfile.BLOCKSIZE, self.bytes - position))
        if len(block) < tarfile.BLOCKSIZE or any(block):
            raise self._error("bad checksum or truncated header", position)
        step = 1 << 20
        for start in range(position, self.bytes, step):
            if any(self.read(start, min(step, self.bytes - start))):
                raise self._error(
                    "data after the end-of-archive marker (join archives with `tar --concatenate`)",
                    position,
                )


class _StrictTarInfo(tarfile.TarInfo):
    """A header parser that rejects what `tarfile` silently accepts or repairs."""

    #: True if an extended header may have set the name.
    is_extended = False

    def _check_header(self, header: bytes, encoding: str, errors: str) -> None:
        """Check and correct what `tarfile` has parsed; raise `tarfile.TarError` if invalid."""
        # `tarfile` also accepts the sum of signed bytes.
        if self.chksum != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise tarfile.ReadError("bad checksum")
        # Only POSIX headers have a prefix; GNU tar stores times in its place.
        if header[257:263] != b"ustar\0":
            self.name = header[:100].split(b"\0")[0].decode(encoding, errors)

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        """Process the header. `tarfile` documents that this method may be overridden."""
        stream: Any = tar.fileobj
        start = stream.tell()
        stream.seek(start - tarfile.BLOCKSIZE)
        encoding, errors = tar.encoding or "utf-8", tar.errors or "strict"
        self._check_header(stream.read(tarfile.BLOCKSIZE), encoding, errors)
        _check_size(self.name, self.size, os.fstat(stream.fileno()).st_size - start)
        if self.type == tarfile.GNUTYPE_SPARSE:
            # The member is skipped as a whole, so its sparse map is not needed.
            return self._proc_builtin(tar)  # pyright: ignore[reportAttributeAccessIssue]
        if self.type in (*_LONG_NAMES, *_PAX):
            _check_utf8(self.name)
            is_global = self.type == tarfile.XGLTYPE
            most = _MAX_GLOBAL_BYTES if is_global else _MAX_EXTENDED_BYTES
            if self.size > most:
                raise tarfile.ReadError(
                    f"extended header of {self.size} bytes; expected at most {most}"
                )
            # Include the padding, which `tarfile` also parses.
            blocks = -(-self.size // tarfile.BLOCKSIZE)
            data = stream.read(blocks * tarfile.BLOCKSIZE).rstrip(b"\0")
            stream.seek(start)
            if len(data) > self.size or (self.type in _LONG_NAMES and b"\0" in data):
                raise tarfile.ReadError("extended header with data after its end")
            if self.type in _PAX:
                _check_pax(data, is_global=is_global)
                if len(tar.pax_headers) > _MAX_GLOBAL_RECORDS:
                    raise tarfile.ReadError(
                        f"{len(tar.pax_headers)} global pax records; expected at most"
                        f" {_MAX_GLOBAL_RECORDS}"
                    )
        info = super()._proc_member(tar)  # pyright: ignore[reportAttributeAccessIssue]
        if self.type in (*_PAX, tarfile.GNUTYPE_LONGNAME) and self.type != tarfile.XGLTYPE:
            if info.is_extended:
                raise tarfile.ReadError(f"two extended headers for member {shown(info.name)}")
            info.is_extended = True
        return info


_OPTIONS: Any = {"tarinfo": _StrictTarInfo, "encoding": "utf-8", "errors": "surrogateescape"}


def _clean_name(name: str) -> str | None:
    """Return a member name without empty and "." parts.

    Returns None for a name that is unsafe, too long, or not UTF-8.
    """
    parts = name.split("/")
    if not 0 < len(name) <= _MAX_NAME or not is_utf8(name):
        return None
    if ".." in parts or name.startswith("/") or "\0" in name:
        return None
    return "/".join(part for part in parts if part not in ("", "."))


def _are_counts(counts: Any) -> TypeGuard[dict[str, int]]:
    """Return whether a value is the counts of skipped members, by kind."""
    if not isinstance(counts, dict) or len(counts) > _MOST_NOTES:
        return False
    return all(
        len(kind) <= _MAX_KIND and kind.isprintable() and is_integer(count)
        for kind, count in counts.items()
    )


def _are_notes(notes: Any) -> TypeGuard[list[str]]:
    """Return whether a value is a list of warnings about an archive."""
    if not isinstance(notes, list) or len(notes) > _MOST_NOTES:
        return False
    return all(
        isinstance(note, str) and len(note) <= _MAX_NOTE and note.isprintable() for note in notes
    )


def _check_utf8(name: str) -> None:
    """Check that a name, decoded with "surrogateescape", is UTF-8."""
    if not is_utf8(name):
        raw = name.encode("utf-8", "surrogateescape")
        raise ValueError(f"the name of member {shown(raw)} is not UTF-8")


def _check_size(name: str, size: int, available: int) -> None:
    """Check that the content of a member lies within the file."""
    if not 0 <= size <= available:
        raise tarfile.ReadError(
            f"member {shown(name)} has {size} bytes, but only {max(available, 0)} are left in the"
            " file"
        )


def _check_pax(data: bytes, *, is_global: bool) -> None:
    """Raise ValueError for an invalid or non-UTF-8 pax record, or a global path or size record.

    `tarfile` stops at an invalid record and reads an invalid size as 0.
    """
    if (digits := _TOO_MANY_DIGITS.search(data)) is not None:
        raise ValueError(f"pax record with {shown(digits[0])}; expected at most 64 digits in a row")
    start = 0
    while start < len(data):
        match = _PAX_RECORD.match(data, start)
        end = start + int(match[1]) if match else 0
        if not match or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise ValueError(f"invalid pax record {shown(data[start : start + 40])}")
        key, value = match[2].decode("utf-8"), data[match.end() : end - 1].decode("utf-8")
        if is_global and key in ("path", "size"):
            raise ValueError(
                f"pax record {key!r} in a global header; expected only in member headers"
            )
        if key == "size" and not re.fullmatch("[0-9]{1,19}", value):
            raise ValueError(f"pax record size={shown(value)}; expected a number of bytes")
        start = end


def as_json(text: str, where: str) -> dict[str, Any]:
    """Parse a JSON object; raise a ValueError that begins with `where` if that fails."""
    content = parse_json(text, where, dict)
    if may_have_surrogates(text) and (problem := surrogate_problem(content)) is not None:
        raise ValueError(f"{where} {problem}")
    return content
