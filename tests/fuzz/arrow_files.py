"""Broken Arrow files: whatever the bytes are, they give values, or a ValueError with their name.

Command: python -m tests.fuzz.arrow_files FIRST COUNT
pyarrow may end the process over a broken file, so this is run in one of its own; the number of a
file is printed before it is read.
"""

from __future__ import annotations

import argparse
import io
import random
import tempfile
from pathlib import Path

import pyarrow as arrow
from pyarrow import ipc

from fiber.data.datasets.resolve import open_source
from fiber.data.formats.arrow_table import open_table

ROWS = 12
#: What is put in the place of a number, beside any: ends of ranges, and small ones.
NUMBERS = (0, 1, 8, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
#: How a message of the formats begins.
MESSAGE = b"\xff\xff\xff\xff"


def main(arguments: list[str] | None = None) -> None:
    """Break and read files of some numbers; print how many were refused whole."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    options = parser.parse_args(arguments)
    originals, refused = wholes(), 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "broken.arrow"
        for number in range(options.first, options.first + options.count):
            print("file", number, flush=True)
            path.write_bytes(broken(random.Random(number), originals))
            refused += is_refused(path)
    print(f"{options.count} files, {refused} refused")


def wholes() -> list[bytes]:
    """Sound files of both formats, plain and compressed, with columns of many types."""
    pictures = [random.Random(row).randbytes(120 + row) for row in range(ROWS)]
    texts = [f"a caption with the number {row}" for row in range(ROWS)]
    plain = arrow.table(
        {"image": pictures, "caption": [["a dog", t] for t in texts], "image_id": range(ROWS)}
    )
    nested = arrow.table(
        {
            "image": [{"bytes": b, "path": f"{row}.png"} for row, b in enumerate(pictures)],
            "text": [text if row % 4 else None for row, text in enumerate(texts)],
            "objects": [{"bbox": [[1.0, 2.0, 3.0, 4.0]] * (row % 3)} for row in range(ROWS)],
            "right": [True, None] * (ROWS // 2),
        }
    )
    rare = arrow.table(
        {
            "image": arrow.array(pictures, arrow.large_binary()),
            "text": arrow.array(texts[:3] * (ROWS // 3)).dictionary_encode(),
            "question": arrow.array(texts, arrow.string_view()),
            "nothing": arrow.nulls(ROWS),
            "size": arrow.array([[1, 2]] * ROWS, arrow.list_(arrow.int32(), 2)),
            "time": arrow.array([0] * ROWS, arrow.timestamp("us", tz="UTC")),
        }
    )
    out = []
    for table in (plain, nested, rare):
        for make in (ipc.new_file, ipc.new_stream):
            for compression in (None, "zstd"):
                file = io.BytesIO()
                options = ipc.IpcWriteOptions(compression=compression)
                with make(file, table.schema, options=options) as writer:
                    writer.write_table(table, max_chunksize=ROWS // 3)
                out.append(file.getvalue())
    return out


def broken(draw: random.Random, originals: list[bytes]) -> bytes:
    """Break one file: anywhere, in numbers, at its ends, behind the start of a message, or cut."""
    data = bytearray(draw.choice(originals))
    size = len(data)
    way = draw.choice(("anywhere", "number", "long", "end", "start", "message", "cut"))
    if way == "cut":
        cut = data[: draw.randrange(size)]
        return bytes(cut + data[-draw.randrange(1, 600) :] if draw.random() < 0.3 else cut)
    starts = [at for at in range(0, size - 8, 4) if data[at : at + 4] == MESSAGE]
    start = draw.choice(starts)
    for _ in range(draw.choice((1, 1, 3, 8))):
        if way in ("number", "long"):
            width = 4 if way == "number" else 8
            at = draw.randrange(size // width) * width
        else:
            width = 1
            first, last = {
                "end": (max(0, size - 1200), size),
                "start": (0, min(size, 1500)),
                "message": (start, min(size, start + 400)),
            }.get(way, (0, size))
            at = draw.randrange(first, last)
        value = draw.choice(NUMBERS) if draw.random() < 0.7 else draw.randrange(1 << 8 * width)
        data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(data)


def is_refused(path: Path) -> bool:
    """Read all of a file, in all ways, and check what is raised; whether it could not be opened."""
    try:
        table = open_table(path, "a table")
    except ValueError as problem:
        assert str(path) in str(problem)
        return True
    for column in table.columns:
        try:
            rows = len(table.values(column))
            for row in range(rows):
                table.value(column, row)
        except ValueError as problem:
            assert str(path) in str(problem)
    for source in ("captions", "questions", "detection"):
        try:
            for record in open_source(source, path, "train"):
                list(record.images)
        except ValueError as problem:
            assert str(path) in str(problem)
    return False


if __name__ == "__main__":
    main()
