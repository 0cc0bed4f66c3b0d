"""Boxes of classes in the TSV files that the published code reads Objects365 from.

A YAML file names the others, which lie beside it:

    img: train.images.tsv            key, ..., picture as base64, the last column
    label: train.label.tsv           key, JSON list of {"class": "mug", "rect": [x0, y0, x1, y1]}
    hw: train.hw.tsv                 key, JSON list with {"height": 480, "width": 640}
    labelmap: train.labelmap.json    {"mug": 1, ...}
    linelist: train.linelist.tsv     numbers from 0 of the lines that are read, repeats allowed;
                                     optional

Beside every .tsv may lie a .lineidx with the byte at which each line starts; without one the file
is gone through once. Pictures are read when their turn comes, never all of them.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np

from fiber.data.storage.file_pool import PooledFile

AnyPath = str | PathLike[str]

KIND = "Objects365, the published TSV files"


class TsvFile:
    """Lines of a file, found by their number without reading the others."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            FileNotFoundError: if it is missing.
            ValueError: if its .lineidx is not one.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; expected a file of {KIND}")
        self.path = path
        self._file = PooledFile(path)
        self._size = self._file.bytes
        index = path.with_suffix(".lineidx")
        self._starts = _read_index(index, self._size) if index.is_file() else _find_lines(path)

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, number: int) -> list[str]:
        """Return the columns of a line, from 0."""
        start = int(self._starts[number])
        end = int(self._starts[number + 1]) if number + 1 < len(self) else self._size
        data = self._file.read(start, end - start)
        try:
            return data.decode("utf-8").rstrip("\r\n").split("\t")
        except UnicodeDecodeError as problem:
            raise ValueError(f"{self.path}: line {number + 1} is not text ({problem})") from None


def _read_index(path: Path, size: int) -> np.ndarray:
    try:
        starts = np.array(path.read_text(encoding="ascii").split(), dtype=np.int64)
    except (ValueError, OverflowError):
        raise ValueError(f"{path}: expected a number a line, the start of each line") from None
    if len(starts) and (starts[0] != 0 or starts[-1] >= size or (np.diff(starts) <= 0).any()):
        raise ValueError(
            f"{path} does not belong to the file of {size} bytes beside it: starts of lines must"
            " grow from 0 and stay below that; delete it to have the lines found"
        )
    return starts


def _find_lines(path: Path) -> np.ndarray:
    starts, position = [], 0
    with path.open("rb") as file:
        for line in file:
            starts.append(position)
            position += len(line)
    return np.array(starts, dtype=np.int64)
