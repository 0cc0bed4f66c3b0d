"""Arrow and Parquet files: texts of all rows at once, pictures one by one when they are asked for.

Arrow files (the file format, and the stream format that Hugging Face's `datasets` saves) are mapped
into memory. Of Parquet files the row group of a picture is read, and the last ones read are kept.
Both need pyarrow: pip install 'fiber-vl[arrow]'.
"""

from __future__ import annotations

import importlib
import json
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any

from fiber.data.records import StoredImage
from fiber.data.source_files import where_to_get

#: Bytes of row groups of a Parquet file that are kept, beside the one that was asked for last.
KEPT_BYTES = 1 << 28


class Table(ABC):
    """A file with named columns.

    Args:
        path: of the file.
        columns: their names.
        metadata: of the schema.
    """

    def __init__(self, path: Path, columns: list[str], metadata: dict[bytes, bytes] | None) -> None:
        self.path = path
        self.columns = columns
        self._metadata = metadata or {}

    @abstractmethod
    def values(self, column: str) -> list[Any]:
        """Read a whole column."""

    @abstractmethod
    def value(self, column: str, row: int) -> Any:
        """Read one value of a column, not through `values`."""

    def picture(self, column: str, row: int) -> StoredImage:
        """Read a picture: bytes, the path of a file, or a struct with `bytes` or else `path`.

        Paths start at the table's folder, or at "images" there.

        Raises:
            ValueError: if there is none, with file, row and column.
        """
        found = self.value(column, row)
        if isinstance(found, dict):
            found = found.get("bytes") or found.get("path")
        if isinstance(found, bytes):
            return found
        if not isinstance(found, str) or not found:
            raise ValueError(
                f"{self.path}: row {row} has no picture in {column!r}, but {str(found)[:40]!r};"
                " expected bytes, a path, or a struct with 'bytes' or 'path'"
            )
        below = self.path.parent / "images" / found
        return str(below if below.is_file() else self.path.parent / found)

    def class_names(self, column: str, field: str) -> list[str]:
        """Find the names that numbers of a field of a column stand for; [] if none are told.

        Hugging Face's `datasets` writes them into the schema: a ClassLabel's `names`.
        """
        try:
            told = json.loads(self._metadata.get(b"huggingface", b"{}"))
            features = told.get("info", {}).get("features", {}).get(column)
        except (ValueError, AttributeError):
            return []
        return _names_in(features, field)


def _names_in(features: Any, field: str) -> list[str]:
    """Look for the `names` of a field at any depth."""
    if not isinstance(features, dict):
        return []
    own = features.get(field)
    while isinstance(own, dict):
        names = own.get("names")
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
        own = own.get("feature")
    return _names_in(features.get("feature"), field)


class _ArrowTable(Table):
    def __init__(self, path: Path, table: Any) -> None:
        schema = getattr(table, "schema", None)
        super().__init__(path, list(table.column_names), getattr(schema, "metadata", None))
        self._table = table

    def values(self, column: str) -> list[Any]:
        return self._table.column(column).to_pylist()

    def value(self, column: str, row: int) -> Any:
        return self._table.column(column)[row].as_py()


class _ParquetTable(Table):
    def __init__(self, path: Path, file: Any) -> None:
        schema = file.schema_arrow
        super().__init__(path, list(schema.names), schema.metadata)
        self._file = file
        metadata = file.metadata
        sizes = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        self._ends = list(accumulate(sizes))
        self._kept: OrderedDict[tuple[int, str], Any] = OrderedDict()
        # The file's reader is not made for several threads.
        self._lock = threading.Lock()

    def values(self, column: str) -> list[Any]:
        try:
            with self._lock:
                return self._file.read(columns=[column]).column(0).to_pylist()
        except (OSError, ValueError) as problem:
            raise ValueError(
                f"{self.path}: column {column!r} cannot be read ({_line(problem)})"
            ) from None

    def value(self, column: str, row: int) -> Any:
        group = bisect_right(self._ends, row)
        start = self._ends[group - 1] if group else 0
        try:
            with self._lock:
                found = self._group(group, column)
        except (OSError, ValueError) as problem:
            raise ValueError(
                f"{self.path}: row group {group} cannot be read ({_line(problem)}); its rows are"
                f" {start} to {self._ends[group] - 1}"
            ) from None
        return found[row - start].as_py()

    def _group(self, group: int, column: str) -> Any:
        """Read a column of a row group, or find it among those kept."""
        key = (group, column)
        if key not in self._kept:
            self._kept[key] = self._file.read_row_group(group, columns=[column]).column(0)
            while len(self._kept) > 1 and sum(a.nbytes for a in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def open_table(path: Path, kind: str) -> Table:
    """Open an Arrow or Parquet file, whichever its first bytes say.

    Args:
        path: of the file.
        kind: what is expected, for messages.

    Raises:
        ModuleNotFoundError: if pyarrow is not installed.
        FileNotFoundError: if it is missing.
        ValueError: if it is neither, or broken.
    """
    try:
        arrow = importlib.import_module("pyarrow")
    except ImportError:
        raise ModuleNotFoundError(
            f"{path} needs pyarrow to be read; pip install 'fiber-vl[arrow]' brings it",
            name="pyarrow",
        ) from None
    if not path.is_file():
        origin = f"it comes from {where_to_get(kind)}" if where_to_get(kind) else f"expected {kind}"
        raise FileNotFoundError(f"{path} does not exist; {origin}")
    with path.open("rb") as file:
        is_parquet = path.suffix == ".parquet" or file.read(4) == b"PAR1"
    try:
        if is_parquet:
            parquet = importlib.import_module("pyarrow.parquet")
            return _ParquetTable(path, parquet.ParquetFile(str(path), memory_map=True))
        return _ArrowTable(path, _read_arrow(arrow, path))
    except (arrow.ArrowInvalid, OSError) as problem:
        form = "Parquet" if is_parquet else "Arrow"
        raise ValueError(f"{path} is no {form} file ({_line(problem)}); expected {kind}") from None


def _line(problem: BaseException) -> str:
    """Say on one line what pyarrow says on several."""
    return " ".join(str(problem).split())


def _read_arrow(arrow: Any, path: Path) -> Any:
    ipc = importlib.import_module("pyarrow.ipc")
    try:
        return ipc.open_file(arrow.memory_map(str(path))).read_all()
    except arrow.ArrowInvalid as problem:
        try:
            return ipc.open_stream(arrow.memory_map(str(path))).read_all()
        except (arrow.ArrowInvalid, AttributeError):
            raise problem from None
