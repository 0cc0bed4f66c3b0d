"""Parquet files of bulk folders: what reads them, and errors that name the file."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fiber.messages import printable, shown_names

#: Columns that tell which record and image a row is of, and the aliases of their pyarrow types.
OF_RECORDS = {"record": "int64", "key": "string", "image": "string"}
#: Columns in which each row has a value.
_NEEDED = ("record", "key", "source", "truncated")
#: Length in characters of the part of an error of pyarrow that is shown.
_MAX_REASON = 240


def require_arrow(what: str) -> tuple[Any, Any]:
    """Return the modules pyarrow and pyarrow.parquet.

    Raises:
        ModuleNotFoundError: if pyarrow is not installed; the message names the extra.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{what} needs pyarrow: pip install 'fiber-vl[arrow]'", name="pyarrow"
        ) from None


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Re-raise an error of pyarrow about a file as a ValueError that names it."""
    arrow, _ = require_arrow("fiber map")
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except (arrow.ArrowException, OSError) as error:
        reason = printable(str(error), _MAX_REASON)
        raise ValueError(f"{path} cannot be read as Parquet: {reason}") from None


def read_table_of(path: Path, names: list[str] | None = None) -> Any:
    """Read a Parquet file, or some of its columns, as a pyarrow table.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is damaged.
    """
    _, parquet = require_arrow("fiber map")
    with parquet_errors(path):
        # One file, whose folder is not searched for partitions.
        return parquet.ParquetFile(str(path)).read(names)


def read_rows(path: Path, types: Mapping[str, Any] = OF_RECORDS) -> Any:
    """Read a table of records or images, which has the columns "record", "key" and "image".

    Args:
        path: Parquet file.
        types: other columns that it must have, and their pyarrow types or the aliases of those; see
            `types_of`.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is damaged, or lacks a column, a key or the number of a record.
    """
    rows = read_table_of(path)
    check_columns(path, rows, {**OF_RECORDS, **types})
    numbers = np.asarray(rows["record"])
    if len(numbers) and numbers.min() < 0:
        raise ValueError(f"{path}: column record has {numbers.min()}; expected 0 or more")
    return rows


def check_columns(path: Path, rows: Any, types: Mapping[str, Any]) -> None:
    """Check the types of columns of a table, and that numbers and keys have values.

    Args:
        path: the file that the table is of.
        rows: a pyarrow table.
        types: as of `read_rows`.

    Raises:
        ValueError: if a column is missing, has another type, or lacks a value.
    """
    arrow, _ = require_arrow("fiber map")
    for name, kind in types.items():
        # Of columns with the same name, pyarrow finds none.
        place = rows.schema.get_field_index(name)
        found = rows.schema.field(place).type if place >= 0 else None
        # Types, not their texts: pyarrow and Parquet name the items of a list differently.
        expected = arrow.type_for_alias(kind) if isinstance(kind, str) else kind
        if found != expected:
            shown = "missing" if found is None else printable(str(found), _MAX_REASON)
            raise ValueError(
                f"{path}: column {name} is {shown}; expected {expected};"
                f" the columns are {shown_names(rows.schema.names)}"
            )
        if name in _NEEDED and rows[name].null_count:
            raise ValueError(f"{path}: column {name} has no value in {rows[name].null_count} rows")


def types_of(schema: Any) -> dict[str, Any]:
    """Return the columns of a pyarrow schema and their types, other than vectors."""
    arrow, _ = require_arrow("fiber map")
    is_vector = arrow.types.is_fixed_size_list
    return {field.name: field.type for field in schema if not is_vector(field.type)}


def vectors_in(rows: Any, column: str, where: object) -> np.ndarray:
    """Return the vectors of a column of a table as an (n, D) float32 array.

    Args:
        rows: a pyarrow table.
        column: name of the column.
        where: what a message names.

    Raises:
        ValueError: if there is no such column, or it has other values than vectors of one width.
    """
    arrow, _ = require_arrow("fiber map")
    place = rows.schema.get_field_index(column)
    kind: Any = rows.schema.field(place).type if place >= 0 else "missing"
    is_vector = place >= 0 and arrow.types.is_fixed_size_list(kind)
    if not is_vector or not arrow.types.is_float32(kind.value_type) or not kind.list_size:
        found = printable(str(kind), _MAX_REASON)
        raise ValueError(f"{where}: column {column} is {found}; expected vectors of float32")
    values = rows[column].combine_chunks()
    flat = values.flatten()
    # The vectors of a null are left out.
    if values.null_count or flat.null_count:
        raise ValueError(f"{where}: column {column} has rows or components without a value")
    return flat.to_numpy(zero_copy_only=False).reshape(len(rows), kind.list_size)
