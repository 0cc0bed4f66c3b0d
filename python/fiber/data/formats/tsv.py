"""Random access to lines of TSV files in the format that GLIP and FIBER use for Objects365.

A YAML file lists the other files, relative to its folder:

    img: train.images.tsv            key, ..., image as base64 in the last column
    label: train.label.tsv           key, JSON list of {"class": "mug", "rect": [x0, y0, x1, y1]}
    hw: train.hw.tsv                 key, JSON list with {"height": 480, "width": 640}
    labelmap: train.labelmap.json    {"mug": 1, ...}
    linelist: train.linelist.tsv     optional: zero-based numbers of the lines to read

The byte offset of each line is read from a .lineidx file with the same stem. If there is none, the
file is scanned once. Images are read on access.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import numpy as np

from fiber.data.formats.annotation_file import is_file, read_text
from fiber.data.storage.file_pool import PooledFile
from fiber.messages import printable

KIND = "Objects365, the published TSV files"


class TsvFile:
    """A TSV file with random access to its lines.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if the .lineidx file is invalid.
    """

    def __init__(self, path: Path) -> None:
        if not is_file(path):
            raise FileNotFoundError(
                f"{printable(str(path), 500)} does not exist; expected a file of {KIND}"
            )
        self.path, self._file = path, PooledFile(path)
        index = path.with_suffix(".lineidx")
        size = self._file.bytes
        if index.is_file():
            starts = read_integers(index, "the byte offset of each line")
            ends = np.append(starts[1:], size)
            if len(starts) and (starts[0] != 0 or (starts >= ends).any()):
                raise ValueError(
                    f"{index}: offsets must increase from 0 and be below {size}, the size of"
                    f" {path.name}; delete this file to scan {path.name} instead"
                )
            self._starts = np.append(starts, size)
        else:
            with path.open("rb") as file:
                self._starts = np.array([0, *accumulate(map(len, file))], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def line_bytes(self, numbers: np.ndarray | None = None) -> int:
        """Return the bytes of lines, given their numbers, or of all lines."""
        if numbers is None:
            return int(self._starts[-1])
        return int((self._starts[numbers + 1] - self._starts[numbers]).sum())

    def row(self, number: int) -> list[str]:
        """Return the columns of a line, given its zero-based number."""
        start, end = int(self._starts[number]), int(self._starts[number + 1])
        data = self._file.read(start, end - start)
        try:
            return data.decode("utf-8").rstrip("\r\n").split("\t")
        except UnicodeDecodeError as problem:
            raise ValueError(
                f"{self.path}: line {number + 1} is not UTF-8 text ({problem})"
            ) from None


def read_integers(path: Path, what: str) -> np.ndarray:
    """Read a file with one integer per line. `what` describes the integers in error messages."""
    text = read_text(path, KIND)
    try:
        return np.array(text.encode("ascii").split(), dtype=np.int64)
    except (ValueError, OverflowError):
        raise ValueError(f"{path} must contain {what}, one integer per line") from None
