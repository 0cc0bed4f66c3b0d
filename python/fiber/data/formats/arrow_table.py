"""Read whole columns of text and single images from Arrow and Parquet files.

Arrow files (the file format, and the stream format that Hugging Face's `datasets` saves) are
memory-mapped, and a column of a record batch is fully validated before its first use. For Parquet
files, the row group of the requested image is read, and recent row groups are cached. Both formats
require pyarrow: pip install 'fiber-vl[arrow]'.

If a file changes while in use, the next read raises an error: size and modification time are
checked before every read. Two cases are not detected and may crash the process: a mapped Arrow file
that is truncated or overwritten during a read, and one that is overwritten so soon after opening
that its modification time stays the same (file systems have a resolution of milliseconds).
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from fiber.data.datasets.registry import where_to_get
from fiber.data.formats.annotation_file import is_file
from fiber.data.formats.json_values import file_name_problem, find_surrogate, parse_json
from fiber.data.prompts.classes import clean_class_name
from fiber.data.record import StoredImage
from fiber.data.storage.file_pool import PooledFile
from fiber.messages import printable, shown

#: Maximum bytes in the row group cache of a Parquet file; the last group used is always kept.
CACHE_BYTES = 1 << 28

#: Magic number of Arrow's file format; the stream format has none.
_ARROW_FILE = b"ARROW1"
#: Maximum number of characters of an error of pyarrow, which may contain values of the file.
_MAX_PROBLEM = 400


class Table(ABC):
    """A file with named columns, divided into parts (record batches or row groups)."""

    #: Name of a part in messages.
    _part_name: str

    def __init__(self, file: PooledFile, schema: Any, rows: Iterable[int]) -> None:
        self._file, self.path = file, file.path
        self.columns, self._metadata = list(schema.names), schema.metadata or {}
        #: For each part, the index after its last row.
        self._ends = list(accumulate(rows))

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self._ends[-1] if self._ends else 0

    @abstractmethod
    def _column(self, part: int, column: str) -> Any:
        """Return a validated column of a part; raise any exception if it is invalid."""

    def values(self, column: str) -> list[Any]:
        """Read a whole column.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if the column is broken (the error names the file and rows), or the file has
                changed since it was opened.
        """
        self._file.check_now()
        out: list[Any] = []
        for part in range(len(self._ends)):
            with self._named(part, column):
                out += self._column(part, column).to_pylist()
        return out

    def value(self, column: str, row: int) -> Any:
        """Read one value of a column. Raises the same errors as `values`."""
        self._file.check_now()
        part = bisect_right(self._ends, row)
        with self._named(part, column):
            return self._column(part, column)[row - self._first_row(part)].as_py()

    def _first_row(self, part: int) -> int:
        return self._ends[part - 1] if part else 0

    @contextlib.contextmanager
    def _named(self, part: int, column: str) -> Iterator[None]:
        """Add the location of the column and its rows to errors."""
        try:
            yield
        except Exception as problem:
            # Of pyarrow, such as ArrowCapacityError, or of what it converts values with.
            where = f"column {column!r} of {self._part_name} {part}"
            rows = f"(rows {self._first_row(part)} to {self._ends[part] - 1})"
            raise ValueError(f"{self.path}: cannot read {where} {rows}: {_line(problem)}") from None

    def image(self, column: str, row: int) -> StoredImage:
        """Read an image stored as bytes, a path, or a struct with `bytes` or `path`.

        Paths are relative to the table's folder or its "images" subfolder.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if there is no image (the error names the file, row and column), or for the
                reasons listed in `values`.
        """
        found = self.value(column, row)
        if isinstance(found, dict):
            found = found.get("bytes") or found.get("path")
        if isinstance(found, bytes):
            return found
        if not isinstance(found, str) or not found:
            raise ValueError(
                f"{self.path}: row {row} has {shown(found)} in {column!r}; expected bytes, a"
                " path, or a struct with 'bytes' or 'path'"
            )
        if (problem := file_name_problem(found)) is not None:
            raise ValueError(f"{self.path}: row {row} has in {column!r} {problem}")
        in_images = self.path.parent / "images" / found
        return str(in_images if is_file(in_images) else self.path.parent / found)

    def class_names(self, column: str, field: str) -> list[str]:
        """Return the class names of a numeric field of a column, or [] if there are none."""
        return names_of_classes(self._metadata, column, field, str(self.path))


def names_of_classes(
    metadata: Mapping[bytes, bytes] | None, column: str, field: str, where: str
) -> list[str]:
    """Return the class names of a numeric field of a column in a schema's metadata, or [].

    Hugging Face's `datasets` stores them as the `names` of a ClassLabel. `where` names the table.

    Raises:
        ValueError: if a name has no letter or digit.
    """
    try:
        features = parse_json((metadata or {}).get(b"huggingface", b"{}").decode(), where)
    except ValueError:
        return []
    # The field may be nested at any depth.
    for name in ("info", "features", column):
        features = features.get(name) if isinstance(features, dict) else None
    while isinstance(features, dict):
        own = features.get(field)
        while isinstance(own, dict):
            names = own.get("names")
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                return _checked_class_names(names, where)
            own = own.get("feature")
        features = features.get("feature")
    return []


def _checked_class_names(names: list[str], where: str) -> list[str]:
    for number, name in enumerate(names):
        if find_surrogate(name) is not None or not clean_class_name(name).strip():
            raise ValueError(
                f"{where}: class {number} of the schema is {shown(name)}; expected a name with"
                " words"
            )
    return names


class _ArrowTable(Table):
    """Record batches of a memory-mapped file.

    pyarrow does not check offsets and lengths on access, so each column of a batch is fully
    validated before its first use, and the file is checked for changes before every read.
    """

    _part_name = "record batch"

    def __init__(self, file: PooledFile, schema: Any, batches: list[Any]) -> None:
        super().__init__(file, schema, (batch.num_rows for batch in batches))
        self._batches = batches
        # Error message (or None) of each column validated, by batch and column index.
        self._problems: dict[tuple[int, int], str | None] = {}

    def _column(self, part: int, column: str) -> Any:
        index = self.columns.index(column)
        values = self._batches[part].column(index)
        if (part, index) not in self._problems:
            self._problems[part, index] = _problem_of(values, self._batches[part].num_rows)
        problem = self._problems[part, index]
        if problem is not None:
            raise ValueError(problem)
        return values


def _problem_of(values: Any, rows: int) -> str | None:
    """Validate a column. Return a description of the problem, or None if it is valid."""
    try:
        values.validate(full=True)
    except Exception as problem:
        # pyarrow's ArrowCapacityError, for example, is of no other type.
        return _line(problem)
    return None if len(values) == rows else f"the column has {len(values)} values; expected {rows}"


class _ParquetTable(Table):
    """Row groups of an open file, read on demand rather than memory-mapped."""

    _part_name = "row group"

    def __init__(self, file: PooledFile, reader: Any) -> None:
        metadata = reader.metadata
        sizes = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        super().__init__(file, reader.schema_arrow, sizes)
        self._reader = reader
        self._cache: OrderedDict[tuple[int, str], Any] = OrderedDict()
        # pyarrow's reader is not thread-safe.
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # Readers cannot be pickled: another process reopens the file and checks for changes.
        return _open_parquet, (self._file,)

    def values(self, column: str) -> list[Any]:
        """Read a whole column at once; see `Table.values`."""
        self._file.check_now()
        try:
            with self._lock:
                values = self._reader.read(columns=[column]).column(0)
            values.validate(full=True)
            if len(values) != (rows := self._ends[-1] if self._ends else 0):
                raise ValueError(f"the column has {len(values)} values; expected {rows}")
            return values.to_pylist()
        except Exception as problem:
            raise ValueError(
                f"{self.path}: cannot read column {column!r}: {_line(problem)}"
            ) from None

    def _column(self, part: int, column: str) -> Any:
        key, cache = (part, column), self._cache
        with self._lock:
            if key not in cache:
                values = self._reader.read_row_group(part, columns=[column]).column(0)
                values.validate(full=True)
                cache[key] = values
                while len(cache) > 1 and sum(a.nbytes for a in cache.values()) > CACHE_BYTES:
                    cache.popitem(last=False)
            cache.move_to_end(key)
            return cache[key]


def open_table(path: Path, kind: str) -> Table:
    """Open an Arrow or Parquet file, detected by extension and content.

    Raises:
        ModuleNotFoundError: if pyarrow is not installed.
        FileNotFoundError: if the file is missing.
        ValueError: if the file is in neither format, is broken, or changes while being opened.
    """
    try:
        importlib.import_module("pyarrow")
    except ImportError:
        raise ModuleNotFoundError(
            f"reading {path} requires pyarrow; run `pip install 'fiber-vl[arrow]'`", name="pyarrow"
        ) from None
    if not path.is_file():
        origin = f", from {where_to_get(kind)}" if where_to_get(kind) else ""
        raise FileNotFoundError(f"{path} does not exist; expected {kind}{origin}")
    file = PooledFile(path, is_held=True)
    with path.open("rb") as opened:
        start = opened.read(len(_ARROW_FILE))
    is_parquet = path.suffix == ".parquet" or start.startswith(b"PAR1")
    try:
        table = _open_parquet(file) if is_parquet else _open_arrow(file, start == _ARROW_FILE)
    except Exception as problem:
        form = "Parquet" if is_parquet else "Arrow"
        raise ValueError(
            f"{path} is not a valid {form} file ({_line(problem)}); expected {kind}"
        ) from None
    # The file may have been overwritten since `PooledFile` stored its size and time.
    file.check_now()
    return table


def _line(problem: BaseException) -> str:
    """Return a pyarrow error message as one line."""
    said = " ".join(str(problem)[: 10 * _MAX_PROBLEM].split())
    return printable(said, _MAX_PROBLEM) or type(problem).__name__


def _open_parquet(file: PooledFile) -> Table:
    file.check_now()
    parquet = importlib.import_module("pyarrow.parquet")
    # Truncating a mapped file crashes the process; without mapping, reads raise an error.
    return _ParquetTable(file, parquet.ParquetFile(str(file.path), memory_map=False))


def _open_arrow(file: PooledFile, has_index: bool) -> Table:
    """Open a file in Arrow's file format, which has an index, or in its stream format."""
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
    except Exception as problem:
        raise ValueError(f"record batch {len(batches)}: {_line(problem)}") from None
    return _ArrowTable(file, reader.schema, batches)
