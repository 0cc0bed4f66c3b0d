"""Recognize tables in memory, and read their columns, without importing the library that made them.

A table is a list of dicts, a pandas.DataFrame, a pyarrow.Table or a datasets.Dataset. A dict of
tables by split, such as a datasets.DatasetDict, is read, too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fiber.data.formats.arrow_table import names_of_classes
from fiber.data.formats.folders.rows import SPLIT_NAMES


class ShapedTable(Protocol):
    """What tables of pandas, pyarrow and datasets have in common, for type checkers."""

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        ...


#: A table.
AnyTable = Sequence[Mapping[str, Any]] | ShapedTable
#: A table, or one for each split.
Rows = AnyTable | Mapping[str, AnyTable]

_SPLITS = {alias: split for split, aliases in SPLIT_NAMES.items() for alias in aliases}


def kinds_of(given: Any) -> set[str]:
    """Return the classes of an object, such as "pandas.DataFrame", without the module's parts."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(given).__mro__}


def is_rows(given: Any) -> bool:
    """Return whether an object is a table, or a dict of tables by split."""
    if isinstance(given, Mapping):
        return bool(given) and all(map(_is_table, given.values()))
    return _is_table(given)


def _is_table(given: Any) -> bool:
    if isinstance(given, list | tuple):
        return bool(given) and isinstance(given[0], Mapping)
    return bool(kinds_of(given) & _READERS.keys())


class MemoryTable(ABC):
    """Columns of a table."""

    #: Name of the table in messages.
    kind: str
    columns: list[str]

    @abstractmethod
    def values(self, column: str) -> list[Any]:
        """Return a column, with None for what is missing."""

    @abstractmethod
    def value(self, column: str, row: int) -> Any:
        """Return one value of a column."""

    def class_names(self, column: str, field: str) -> Sequence[str]:
        """Return the names of the classes of a numeric field of a column, or [] if unknown."""
        return []


class _Dicts(MemoryTable):
    kind = "list of dicts"

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for index, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise TypeError(f"data: row {index} is a {type(row).__name__}; expected a dict")
        self._rows = rows
        self.columns = list(dict.fromkeys(str(name) for row in rows for name in row))

    def values(self, column: str) -> list[Any]:
        return [plain(row.get(column)) for row in self._rows]

    def value(self, column: str, row: int) -> Any:
        return self._rows[row].get(column)


class _Frame(MemoryTable):
    kind = "pandas.DataFrame"

    def __init__(self, frame: Any) -> None:
        self._frame = frame
        self.columns = [str(name) for name in frame.columns]

    def values(self, column: str) -> list[Any]:
        return [_present(plain(value)) for value in self._column(column)]

    def value(self, column: str, row: int) -> Any:
        return self._column(column).iloc[row]

    def _column(self, column: str) -> Any:
        return self._frame.iloc[:, self.columns.index(column)]


class _ArrowRows(MemoryTable):
    kind = "pyarrow.Table"

    def __init__(self, table: Any) -> None:
        self._table = table
        self._metadata = table.schema.metadata
        self.columns = list(table.column_names)

    def values(self, column: str) -> list[Any]:
        return self._table.column(column).to_pylist()

    def value(self, column: str, row: int) -> Any:
        return self._table.column(column)[row].as_py()

    def class_names(self, column: str, field: str) -> Sequence[str]:
        return names_of_classes(self._metadata, column, field, f"the {self.kind}")


class _Dataset(_ArrowRows):
    """Rows of a dataset as Arrow tables, which have images as stored, not decoded."""

    kind = "datasets.Dataset"

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._rows = dataset.with_format("arrow")
        self._metadata = dataset.features.arrow_schema.metadata
        self.columns = list(dataset.column_names)

    def values(self, column: str) -> list[Any]:
        # Images are not read with the texts.
        rows = self._dataset.select_columns([column]).with_format("arrow")[:]
        return rows.column(column).to_pylist()

    def value(self, column: str, row: int) -> Any:
        return self._rows[row].column(column)[0].as_py()


_READERS: dict[str, type[Any]] = {
    "pandas.DataFrame": _Frame,
    "pyarrow.Table": _ArrowRows,
    "datasets.Dataset": _Dataset,
}


def open_memory_table(given: Any) -> MemoryTable:
    """Return the columns of a table for which `is_rows` is true."""
    if isinstance(given, list | tuple):
        return _Dicts(given)
    return next(reader for kind, reader in _READERS.items() if kind in kinds_of(given))(given)


def tables_by_split(given: Any) -> dict[str, Any]:
    """Return the tables of a dict by the names that splits have here, or a table as ""."""
    if not isinstance(given, Mapping):
        return {"": given}
    return {_SPLITS.get(str(name), str(name)): table for name, table in given.items()}


def plain(value: Any) -> Any:
    """Convert arrays and tensors within a value to lists and numbers."""
    if isinstance(value, str | bytes | int | float) or value is None:
        return value
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return plain(value.tolist()) if hasattr(value, "tolist") else value


def _present(value: Any) -> Any:
    """Return None for the values by which pandas marks what is missing."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return None if type(value).__name__ in ("NAType", "NaTType") else value
