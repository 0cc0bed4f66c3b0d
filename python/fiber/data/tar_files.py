"""Members of a tar file, found once and then read by their places.

The headers are gone through once; what was found is kept beside the file as "<name>.index" where
that can be written, and is used again as long as the file's size and time of change are the same.

Source of the format: POSIX.1-2017, pax, and the manual of GNU tar ("Basic Tar Format").
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from fiber.atomic_io import JSON_ERRORS, write_file
from fiber.data.storage.file_pool import PooledFile

_BLOCK = 512
#: Longest name or list of attributes that a header of its own may hold, in bytes.
_MOST_HEADER_BYTES = 1 << 20
_VERSION = 1
_FILES, _FOLDER, _LINKS = (b"0", b"\0", b"7"), b"5", (b"1", b"2")
_LONG_NAME, _LONG_LINK, _PAX, _GLOBAL_PAX = b"L", b"K", b"x", b"g"


class Member(NamedTuple):
    """A regular file in a tar file."""

    name: str
    #: Byte at which its content begins.
    start: int
    #: Bytes of its content.
    size: int


class TarFile(PooledFile):
    """A tar file and its members, in their order.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is no tar file, cut off, or has a member whose name leads out of the
            folder that it would be unpacked to; with file and member.

    Attributes:
        members: the regular files.
        counts: members that are none, by kind.
        notes: what is to be told of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.members: list[Member] = []
        self.counts: dict[str, int] = {}
        self.notes: list[str] = []
        if not self._read_index():
            _Scan(self).run()
            self._write_index()

    def text(self, member: Member) -> str:
        """Read a member that holds text.

        Raises:
            ValueError: if it is not in UTF-8, with file and member.
        """
        try:
            return self.read(member.start, member.size).decode("utf-8")
        except UnicodeDecodeError as problem:
            raise ValueError(
                f"{self.path}: member {member.name!r} is not UTF-8 text ({problem})"
            ) from None

    def _index_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.index")

    def _read_index(self) -> bool:
        """Take the members from the index beside the file, if it belongs to it."""
        try:
            found = json.loads(self._index_path().read_text(encoding="ascii"))
            if [found[key] for key in ("version", "bytes", "changed_ns")] != [
                _VERSION,
                self.bytes,
                self.changed,
            ]:
                return False
            members = [Member(str(name), start, size) for name, start, size in found["members"]]
            counts, notes = dict(found["counts"]), list(found["notes"])
            fits = all(m.start >= 0 and 0 <= m.size <= self.bytes - m.start for m in members)
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if fits:
            self.members, self.counts, self.notes = members, counts, notes
        return fits

    def _write_index(self) -> None:
        """Keep the members beside the file; where that cannot be, they are found anew each time."""
        content = {
            "version": _VERSION,
            "bytes": self.bytes,
            "changed_ns": self.changed,
            "counts": self.counts,
            "notes": self.notes,
            "members": self.members,
        }
        text = json.dumps(content)
        # Several processes may find the members at once.
        with contextlib.suppress(OSError):
            write_file(
                self._index_path(),
                lambda part: part.write_text(text, encoding="ascii"),
                shared=True,
            )


class _Scan:
    """Goes through the headers of a tar file."""

    def __init__(self, file: TarFile) -> None:
        self.file = file
        self.position = 0
        # What headers of their own say about the next member.
        self.name, self.size = "", -1

    def run(self) -> None:
        file = self.file
        if file.bytes == 0:
            raise ValueError(f"{file.path} is empty; expected a tar file")
        while self.position < file.bytes:
            block = file.read(self.position, min(_BLOCK, file.bytes - self.position))
            if len(block) < _BLOCK:
                raise self.error(f"is cut off: it ends after {len(block)} bytes of a header")
            if not any(block):
                self._check_rest()
                return
            self._header(block)
        file.notes.append(
            f"{file.path} has no mark at its end; if it was cut off there, samples are missing"
        )

    def error(self, problem: str) -> ValueError:
        return ValueError(f"{self.file.path} {problem}, at byte {self.position}")

    def _header(self, block: bytes) -> None:
        stored = block[148:156].split(b"\0")[0].strip()
        try:
            is_right = int(stored, 8) == sum(block) - sum(block[148:156]) + 8 * ord(" ")
        except ValueError:
            is_right = False
        if not is_right:
            kind = "is no tar file" if self.position == 0 else "has a broken header"
            packed = block.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
            advice = "; it is compressed, unpack it (gunzip) for random access" if packed else ""
            raise self.error(f"{kind} (wrong checksum{advice})")
        name, size, kind = self._name(block), _number(block[124:136]), block[156:157]
        if self.size >= 0 and kind not in (_PAX, _GLOBAL_PAX, _LONG_NAME, _LONG_LINK):
            size = self.size
        if size is None or size < 0:
            raise self.error(f"has a member {name!r} without a size")
        start = self.position + _BLOCK
        if start + size > self.file.bytes:
            raise self.error(
                f"is cut off: its member {name!r} has {size} bytes, of which"
                f" {max(self.file.bytes - start, 0)} are there"
            )
        if kind in (_PAX, _LONG_NAME):
            self._extension(kind, start, size)
        elif kind not in (_GLOBAL_PAX, _LONG_LINK):
            self._member(name, start, size, kind)
            self.name, self.size = "", -1
        self.position = start + -(-size // _BLOCK) * _BLOCK

    def _name(self, block: bytes) -> str:
        name = block[:100].split(b"\0")[0]
        # GNU's own format uses the place of the prefix for other things.
        prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
        raw = prefix + b"/" + name if prefix else name
        try:
            return self.name or raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(f"has the member {raw!r}, whose name is not UTF-8") from None

    def _extension(self, kind: bytes, start: int, size: int) -> None:
        """Read what stands in a header of its own about the next member."""
        if size > _MOST_HEADER_BYTES:
            raise self.error(f"has a header of {size} bytes; expected {_MOST_HEADER_BYTES} at most")
        data = self.file.read(start, size)
        try:
            if kind == _LONG_NAME:
                self.name = data.rstrip(b"\0").decode("utf-8")
                return
            for key, value in _pax_records(data):
                if key == "path":
                    self.name = value
                elif key == "size":
                    self.size = int(value)
        except ValueError:
            raise self.error("has a header that cannot be read") from None

    def _member(self, name: str, start: int, size: int, kind: bytes) -> None:
        parts = name.split("/")
        if ".." in parts or name.startswith("/") or "\0" in name or not name:
            raise self.error(
                f"has the member {name!r}, whose name leads out of the folder that it would be"
                " unpacked to; nothing of this file is read"
            )
        clean = "/".join(part for part in parts if part not in ("", "."))
        if kind in _FILES and clean and not name.endswith("/"):
            self.file.members.append(Member(clean, start, size))
        elif kind != _FOLDER and not name.endswith("/"):
            what = "links" if kind in _LINKS else "members that are no files"
            self.file.counts[what] = self.file.counts.get(what, 0) + 1

    def _check_rest(self) -> None:
        """Check that nothing follows the end, as where two files were joined."""
        position, step = self.position, 1 << 20
        while position < self.file.bytes:
            if any(self.file.read(position, min(step, self.file.bytes - position))):
                raise self.error(
                    "goes on behind its end: joined files need `tar --concatenate`; it ends"
                )
            position += step


def _number(field: bytes) -> int | None:
    """Read a number of a header: octal digits, or for large ones its bytes."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return None


def _pax_records(data: bytes) -> list[tuple[str, str]]:
    """Split lines of "<length> <key>=<value>"."""
    records = []
    while data.rstrip(b"\0"):
        length, _, rest = data.partition(b" ")
        end = int(length) - len(length) - 1
        record = rest[:end]
        if end <= 0 or len(rest) < end or not record.endswith(b"\n"):
            raise ValueError
        key, equals, value = record[:-1].partition(b"=")
        if not equals:
            raise ValueError
        records.append((key.decode("utf-8"), value.decode("utf-8")))
        data = rest[end:]
    return records


def as_json(text: str, where: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: if it is none, with where it stands.
    """
    try:
        found = json.loads(text)
    except JSON_ERRORS as problem:
        raise ValueError(f"{where} is not JSON ({problem})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{where} holds {str(found)[:40]!r}; expected a JSON object")
    return found
