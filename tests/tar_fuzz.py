"""Broken tar files: whatever the bytes are, they give members inside the file, or a ValueError.

Command: python -m tests.tar_fuzz SECONDS
Some files are read line by line under a trace, which tells the lines that were reached.
"""

from __future__ import annotations

import argparse
import random
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from fiber.data.storage import tar
from fiber.data.storage.tar import TarFile
from tests.data.shards import write_tar

CONTENT = [
    ("a.jpg", b"\xff\xd8 picture"),
    ("a.txt", b"ein Text"),
    ("folder/b.json", b"{}" * 300),
    ("empty.txt", b""),
    ("z" * 200 + ".txt", b"long"),
]
#: Of so many files one is read under the trace, which is slow.
TRACED = 20


def main(arguments: list[str] | None = None) -> None:
    """Break and read files for some seconds; print how many, and the lines reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("seconds", type=float)
    end = time.monotonic() + parser.parse_args(arguments).seconds
    reached: set[int] = set()
    count = refused = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        originals, draw = wholes(path), random.Random(1)
        while time.monotonic() < end:
            sys.settrace(_tracer(reached) if count % TRACED == 0 else None)
            try:
                refused += is_refused(draw, originals, path)
            finally:
                sys.settrace(None)
            count += 1
    lines = _lines(Path(tar.__file__))
    print(
        f"{count} files, {refused} refused; {len(reached & lines)} of {len(lines)} lines of"
        " storage/tar.py reached"
    )


def wholes(path: Path) -> list[bytes]:
    """Sound files that mutations begin with, in both formats in use."""
    forms = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    return [write_tar(path, CONTENT, form).read_bytes() for form in forms]


def is_refused(draw: random.Random, originals: list[bytes], path: Path) -> bool:
    """Break one file, read it, and check what comes out; whether it was refused."""
    data = bytearray(draw.choice(originals))
    for _ in range(draw.randrange(1, 4)):
        block = draw.randrange(len(data) // 512)
        data[block * 512 + draw.randrange(512)] = draw.randrange(256)
        if draw.random() < 0.7:
            _repair(data, block)
    if draw.random() < 0.2:
        del data[draw.randrange(len(data)) :]
    path.write_bytes(data)
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


def _repair(data: bytearray, block: int) -> None:
    """Give a changed header the right checksum, so that more than the check of it is tested."""
    header = data[block * 512 : block * 512 + 512]
    total = sum(header) - sum(header[148:156]) + 8 * 32
    data[block * 512 + 148 : block * 512 + 156] = b"%06o\0 " % total


def _tracer(reached: set[int]) -> Any:
    """A trace function that notes the lines of storage/tar.py."""

    def of_line(frame: FrameType, event: str, argument: object) -> Any:
        reached.add(frame.f_lineno)
        return of_line

    def of_call(frame: FrameType, event: str, argument: object) -> Any:
        return of_line if frame.f_code.co_filename == tar.__file__ else None

    return of_call


def _lines(path: Path) -> set[int]:
    """Lines of the functions of a file that can be reached."""

    def functions(code: CodeType) -> Iterator[CodeType]:
        for each in code.co_consts:
            if isinstance(each, CodeType):
                yield each
                yield from functions(each)

    whole = compile(path.read_text(encoding="utf-8"), str(path), "exec")
    # A function's first line is reached when it is defined, not when it runs.
    return {
        line
        for code in functions(whole)
        if not code.co_name[0].isupper()
        for _, _, line in code.co_lines()
        if line is not None and line != code.co_firstlineno
    }


if __name__ == "__main__":
    main()
