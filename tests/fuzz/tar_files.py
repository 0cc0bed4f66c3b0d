"""Broken tar files: whatever the bytes are, they give members inside the file, or a ValueError."""

from __future__ import annotations

import random
import tarfile
from pathlib import Path

from fiber.data.storage.tar import TarFile
from tests.data.shards import write_tar

CONTENT = [
    ("a.jpg", b"\xff\xd8 picture"),
    ("a.txt", b"ein Text"),
    ("folder/b.json", b"{}" * 300),
    ("empty.txt", b""),
    ("z" * 200 + ".txt", b"long"),
]
#: Bytes of a header, and of a unit of content.
BLOCK = 512


def wholes(path: Path) -> list[bytes]:
    """Sound files that mutations begin with, in both formats in use."""
    forms = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    return [write_tar(path, CONTENT, form).read_bytes() for form in forms]


def broken(draw: random.Random, originals: list[bytes]) -> bytes:
    """Change some bytes of headers and contents; sometimes cut the file off."""
    data = bytearray(draw.choice(originals))
    for _ in range(draw.randrange(1, 4)):
        block = draw.randrange(len(data) // BLOCK)
        data[block * BLOCK + draw.randrange(BLOCK)] = draw.randrange(256)
        if draw.random() < 0.7:
            repair(data, block)
    if draw.random() < 0.2:
        del data[draw.randrange(len(data)) :]
    return bytes(data)


def is_refused(path: Path) -> bool:
    """Read a file and check what comes out; whether it was refused."""
    path.with_name(f"{path.name}.index").unlink(missing_ok=True)
    try:
        file = TarFile(path)
    except ValueError as problem:
        assert str(path) in str(problem)
        return True
    for member in file.members:
        assert ".." not in member.name.split("/")
        assert not member.name.startswith("/")
        assert len(file.read(member.start, member.size)) == member.size
    return False


def is_header(data: bytearray, block: int) -> bool:
    """Whether a block has the magic of a header."""
    return data[block * BLOCK + 257 : block * BLOCK + 262] == b"ustar"


def repair(data: bytearray, block: int) -> None:
    """Give a changed header the right checksum, so that more than the check of it is tested."""
    header = data[block * BLOCK : block * BLOCK + BLOCK]
    total = sum(header) - sum(header[148:156]) + 8 * 32
    data[block * BLOCK + 148 : block * BLOCK + 156] = b"%06o\0 " % total
