"""Random access to lines of TSV files, in the format from which GLIP and FIBER read Objects365.

A YAML file names the others, relative to its folder:

    img: train.images.tsv            key, ..., image as base64 in the last column
    label: train.label.tsv           key, JSON list of {"class": "mug", "rect": [x0, y0, x1, y1]}
    hw: train.hw.tsv                 key, JSON list with {"height": 480, "width": 640}
    labelmap: train.labelmap.json    {"mug": 1, ...}
    linelist: train.linelist.tsv     line numbers to read, from 0, repeats allowed; optional

The byte offset of each line is read from a .lineidx file with the same stem; without one the file
is scanned once. Images are read on access.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fiber.data.storage.file_pool import PooledFile

KIND = "Objects365, the published TSV files"


class TsvFile:
    """A TSV file with random access to its lines."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            FileNotFoundError: if it is missing.
            ValueError: if its .lineidx is invalid.
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
        """Return the columns of a line; `number` counts from 0."""
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
        raise ValueError(
            f"{path}: expected the byte offset of each line, one number per line"
        ) from None
    if len(starts) and (starts[0] != 0 or starts[-1] >= size or (np.diff(starts) <= 0).any()):
        raise ValueError(
            f"{path} does not fit its file of {size} bytes: offsets must increase from 0 and stay"
            " below the size; delete it to scan the lines"
        )
    return starts


def _find_lines(path: Path) -> np.ndarray:
    starts, position = [], 0
    with path.open("rb") as file:
        for line in file:
            starts.append(position)
            position += len(line)
    return np.array(starts, dtype=np.int64)
