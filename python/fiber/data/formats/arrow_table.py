"""Arrow and Parquet files: columns of texts as a whole, images one by one.

Arrow files (the file format, and the stream format that Hugging Face's `datasets` saves) are memory
mapped, and a column of a record batch is validated in full before its first use. Of Parquet files
the row group of an image is read, and the last row groups are cached. Both need pyarrow: pip
install 'fiber-vl[arrow]'.

A file that changes while in use raises an error at the next read: its size and modification time
are checked before each. Not detected are a mapped Arrow file that is truncated or overwritten
during a read, and one overwritten so soon after opening that its modification time is the same
(file systems have a resolution of milliseconds): both may crash the process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from fiber.data.formats.annotation_file import where_to_get
from fiber.data.record import StoredImage
from fiber.data.storage.file_pool import PooledFile

#: Size of the cache of row groups of a Parquet file, in addition to the last one used.
CACHE_BYTES = 1 << 28

#: Magic number of Arrow's file format; the stream format has none.
_ARROW_FILE = b"ARROW1"
#: Exceptions that pyarrow raises for broken files; its own errors are subclasses of them.
_BROKEN = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    NotImplementedError,
)


class Table(ABC):
    """A file with named columns.

    Args:
        columns: column names.
        metadata: schema metadata.
    """

    def __init__(self, path: Path, columns: list[str], metadata: dict[bytes, bytes] | None) -> None:
        self.path = path
        self.columns = columns
        self._metadata = metadata or {}

    @abstractmethod
    def values(self, column: str) -> list[Any]:
        """Read a whole column.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if the column is broken, with file and rows, or the file has changed since
                it was opened.
        """

    @abstractmethod
    def value(self, column: str, row: int) -> Any:
        """Read one value of a column. Errors as in `values`."""

    def image(self, column: str, row: int) -> StoredImage:
        """Read an image: bytes, a path, or a struct with `bytes` or `path`.

        Paths are relative to the table's folder, or to "images" in it.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if there is no image, with file, row and column, or as in `values`.
        """
        found = self.value(column, row)
        if isinstance(found, dict):
            found = found.get("bytes") or found.get("path")
        if isinstance(found, bytes):
            return found
        if not isinstance(found, str) or not found:
            raise ValueError(
                f"{self.path}: row {row} has no image in {column!r}, but {str(found)[:40]!r};"
                " expected bytes, a path, or a struct with 'bytes' or 'path'"
            )
        in_images = self.path.parent / "images" / found
        return str(in_images if in_images.is_file() else self.path.parent / found)

    def class_names(self, column: str, field: str) -> list[str]:
        """Return the class names of a numeric field of a column, or [].

        Hugging Face's `datasets` stores them in the schema: the `names` of a ClassLabel.
        """
        try:
            metadata = json.loads(self._metadata.get(b"huggingface", b"{}"))
            features = metadata.get("info", {}).get("features", {}).get(column)
        except (ValueError, AttributeError):
            return []
        return _names_in(features, field)


def _names_in(features: Any, field: str) -> list[str]:
    """Find the `names` of a field at any depth."""
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
    """Record batches of a memory mapped file.

    pyarrow does not check offsets and lengths on access, so a column of a batch is validated in
    full before its first value is used, and the file is checked for changes before every read.
    """

    def __init__(self, file: PooledFile, schema: Any, batches: list[Any]) -> None:
        super().__init__(file.path, list(schema.names), schema.metadata)
        self._file = file
        self._batches = batches
        self._ends = list(accumulate(batch.num_rows for batch in batches))
        # Error of each validated column of a batch, or None.
        self._problems: dict[tuple[int, int], str | None] = {}

    def values(self, column: str) -> list[Any]:
        self._file.check_now()
        out: list[Any] = []
        for number in range(len(self._batches)):
            found = self._column(number, column)
            with self._named(number, column):
                out += found.to_pylist()
        return out

    def value(self, column: str, row: int) -> Any:
        self._file.check_now()
        number = bisect_right(self._ends, row)
        found = self._column(number, column)
        with self._named(number, column):
            return found[row - self._first_row(number)].as_py()

    def _first_row(self, number: int) -> int:
        return self._ends[number - 1] if number else 0

    def _column(self, number: int, column: str) -> Any:
        """Return a column of a batch, validated."""
        place = self.columns.index(column)
        with self._named(number, column):
            found = self._batches[number].column(place)
        key = (number, place)
        if key not in self._problems:
            self._problems[key] = _problem_of(found, self._batches[number].num_rows)
        problem = self._problems[key]
        if problem is not None:
            raise self._error(number, column, problem)
        return found

    @contextlib.contextmanager
    def _named(self, number: int, column: str) -> Iterator[None]:
        """Name the column and rows in errors."""
        try:
            yield
        except _BROKEN as problem:
            raise self._error(number, column, _line(problem)) from None

    def _error(self, number: int, column: str, problem: str) -> ValueError:
        return ValueError(
            f"{self.path}: column {column!r} of record batch {number} cannot be read ({problem});"
            f" its rows are {self._first_row(number)} to {self._ends[number] - 1}"
        )


def _problem_of(values: Any, rows: int) -> str | None:
    """Validate a column; return the problem, or None."""
    try:
        values.validate(full=True)
    except _BROKEN as problem:
        return _line(problem)
    return None if len(values) == rows else f"it has {len(values)} values; expected {rows}"


class _ParquetTable(Table):
    """Row groups of an open file, read on demand and not mapped."""

    def __init__(self, file: PooledFile, reader: Any) -> None:
        schema = reader.schema_arrow
        super().__init__(file.path, list(schema.names), schema.metadata)
        self._file = file
        self._reader = reader
        metadata = reader.metadata
        sizes = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        self._ends = list(accumulate(sizes))
        self._cache: OrderedDict[tuple[int, str], Any] = OrderedDict()
        # pyarrow's reader is not thread-safe.
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # Readers cannot be pickled: another process reopens the file and checks for changes.
        return _open_parquet, (self._file,)

    def values(self, column: str) -> list[Any]:
        self._file.check_now()
        try:
            with self._lock:
                found = self._reader.read(columns=[column]).column(0)
            found.validate(full=True)
            return found.to_pylist()
        except _BROKEN as problem:
            raise ValueError(
                f"{self.path}: column {column!r} cannot be read ({_line(problem)})"
            ) from None

    def value(self, column: str, row: int) -> Any:
        self._file.check_now()
        group = bisect_right(self._ends, row)
        start = self._ends[group - 1] if group else 0
        try:
            with self._lock:
                found = self._group(group, column)
            return found[row - start].as_py()
        except _BROKEN as problem:
            raise ValueError(
                f"{self.path}: row group {group} cannot be read ({_line(problem)}); its rows are"
                f" {start} to {self._ends[group] - 1}"
            ) from None

    def _group(self, group: int, column: str) -> Any:
        """Return a column of a row group, from the cache if possible."""
        key = (group, column)
        if key not in self._cache:
            found = self._reader.read_row_group(group, columns=[column]).column(0)
            found.validate(full=True)
            self._cache[key] = found
            while (
                len(self._cache) > 1 and sum(a.nbytes for a in self._cache.values()) > CACHE_BYTES
            ):
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]


def open_table(path: Path, kind: str) -> Table:
    """Open an Arrow or Parquet file; the format is detected by extension and content.

    Args:
        path: path of the file.
        kind: expected kind of file, for messages.

    Raises:
        ModuleNotFoundError: if pyarrow is not installed.
        FileNotFoundError: if it is missing.
        ValueError: if it is neither, is broken, or changes while it is opened.
    """
    try:
        importlib.import_module("pyarrow")
    except ImportError:
        raise ModuleNotFoundError(
            f"reading {path} needs pyarrow; install it with pip install 'fiber-vl[arrow]'",
            name="pyarrow",
        ) from None
    if not path.is_file():
        origin = f"it comes from {where_to_get(kind)}" if where_to_get(kind) else f"expected {kind}"
        raise FileNotFoundError(f"{path} does not exist; {origin}")
    file = PooledFile(path, is_held=True)
    with path.open("rb") as opened:
        start = opened.read(len(_ARROW_FILE))
    is_parquet = path.suffix == ".parquet" or start.startswith(b"PAR1")
    try:
        table = _open_parquet(file) if is_parquet else _open_arrow(file, start == _ARROW_FILE)
    except _BROKEN as problem:
        form = "Parquet" if is_parquet else "Arrow"
        raise ValueError(
            f"{path} is not a valid {form} file ({_line(problem)}); expected {kind}"
        ) from None
    # It may have been overwritten after `PooledFile` took its size and time.
    file.check_now()
    return table


def _line(problem: BaseException) -> str:
    """Return pyarrow's multi-line message as one line."""
    return " ".join(str(problem).split()) or type(problem).__name__


def _open_parquet(file: PooledFile) -> Table:
    file.check_now()
    parquet = importlib.import_module("pyarrow.parquet")
    # Truncation crashes the process for a mapped file; otherwise it raises.
    return _ParquetTable(file, parquet.ParquetFile(str(file.path), memory_map=False))


def _open_arrow(file: PooledFile, has_index: bool) -> Table:
    """Open the file format, which has an index, or the stream format."""
    arrow, ipc = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.ipc")
    mapped = arrow.memory_map(str(file.path))
    if has_index:
        reader = ipc.open_file(mapped)
        found = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        reader = ipc.open_stream(mapped)
        found = iter(reader)
    batches: list[Any] = []
    try:
        batches.extend(found)
    except _BROKEN as problem:
        raise ValueError(f"record batch {len(batches)}: {_line(problem)}") from None
    return _ArrowTable(file, reader.schema, batches)
