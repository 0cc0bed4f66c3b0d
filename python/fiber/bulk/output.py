"""Folders of `fiber map`: Parquet files of units, `map.json`, and `errors.parquet`.

    map.json                what was run on what: task, model, source, texts, options, versions
    rows/000000.parquet     results of a unit; there only when the unit is done
    errors/000000.parquet   records of that unit that failed; there before the results
    errors.parquet          all records that failed, when all units are done

Files are written under another name, flushed to the disk and renamed.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fiber.atomic_io import (
    PART,
    explain_write_errors,
    flush_to_disk,
    made_folder,
    read_json,
    write_file,
)
from fiber.bulk.parquet import (
    check_columns,
    parquet_errors,
    read_rows,
    read_table_of,
    require_arrow,
    types_of,
)
from fiber.bulk.tasks import BulkTask, find_bulk_task
from fiber.data.formats.json_values import MAX_ID, is_integer, is_utf8
from fiber.messages import printable, shown, shown_names

#: Version of the schema of `map.json` and of the Parquet files.
VERSION = 1
#: Names in the folder.
DESCRIPTION, ROWS, ERRORS = "map.json", "rows", "errors"
#: Maximum size of `map.json` in bytes.
_MAX_JSON_BYTES = 1 << 24
#: Length in characters of the name of a field in messages.
_MAX_KEY = 60
#: Least number of rows that are written at once.
_ROW_GROUP = 1024
#: Fields of the objects `source` and `model` of `map.json`, and their types.
SOURCE_FIELDS: dict[str, type] = {
    "data": str,
    "source": str,
    "splits": list,
    "records": int,
    "units": int,
    "fingerprint": str,
}
MODEL_FIELDS: dict[str, type] = {"name": str, "fingerprint": str}
#: Where the texts of the records come from.
_TEXTS_FROM = ("none", "option", "records", "model")
#: Fields of `map.json` that say where things are, which may change between two runs.
_PLACES = {"model.name", "source.data"}


def row_schema(task: BulkTask, width: int | None = None) -> Any:
    """Return the Parquet schema of the results of a task; `width` is that of its vectors."""
    arrow, _ = require_arrow("fiber map")
    f32 = arrow.float32()
    types = {
        "vector": arrow.list_(f32, width or 0),
        "text": arrow.string(),
        "score": f32,
        "texts": arrow.list_(arrow.string()),
        "scores": arrow.list_(f32),
        "indices": arrow.list_(arrow.int32()),
        "boxes": arrow.list_(arrow.list_(f32, 4)),
        "areas": arrow.list_(arrow.int64()),
        "flags": arrow.list_(arrow.bool_()),
    }
    fields = [
        ("record", arrow.int64()),
        ("key", arrow.string()),
        ("image", arrow.string()),
        ("height", arrow.int32()),
        ("width", arrow.int32()),
        *(() if "text" in task.columns else (("text", arrow.string()),)),
        *((name, types[kind]) for name, kind in task.columns.items()),
        *((("truncated", arrow.bool_()),) if task.truncates else ()),
    ]
    about = {"fiber.map.version": str(VERSION), "fiber.map.task": task.name}
    return arrow.schema(fields, metadata=about)


def error_schema() -> Any:
    """Return the Parquet schema of records that failed."""
    arrow, _ = require_arrow("fiber map")
    fields = [("record", arrow.int64()), ("key", arrow.string()), ("image", arrow.string())]
    about = {"fiber.map.version": str(VERSION)}
    return arrow.schema([*fields, ("reason", arrow.string())], metadata=about)


class UnitWriter:
    """Writes the results of one unit: a context manager, in which `add` is called with columns.

    Nothing has the final name before the block has ended without an error.
    """

    def __init__(self, folder: Path, unit: int, schema: Any) -> None:
        self.path, self.errors_path = unit_file(folder, unit), unit_file(folder, unit, ERRORS)
        self._schema = schema
        self._columns: dict[str, list[Any]] = {name: [] for name in schema.names}
        self._errors: dict[str, list[Any]] = {name: [] for name in error_schema().names}
        self._writer: Any = None
        self._part = _part_of(self.path)
        self.rows = 0

    def __enter__(self) -> UnitWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                with explain_write_errors(self.path):
                    self._finish()
        finally:
            if self._writer is not None:
                # Of a full disk, which is an error already.
                with suppress(OSError):
                    self._writer.close()
            self._part.unlink(missing_ok=True)

    def add(self, columns: Mapping[str, Sequence[Any]], errors: Sequence[str | None]) -> None:
        """Add the rows of a batch; those with an error go to the errors of the unit."""
        good = [row for row, error in enumerate(errors) if error is None]
        for name, values in self._columns.items():
            own = columns[name]
            values.extend(own if len(good) == len(errors) else (own[row] for row in good))
        for row, error in enumerate(errors):
            if error is not None:
                for name in ("record", "key", "image"):
                    self._errors[name].append(columns[name][row])
                self._errors["reason"].append(error)
        if len(self._columns["record"]) >= _ROW_GROUP:
            with explain_write_errors(self.path):
                self._flush()

    def _flush(self) -> None:
        _, parquet = require_arrow("fiber map")
        if self._writer is None:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._writer = parquet.ParquetWriter(str(self._part), self._schema)
        table = columns_table(self._columns, self._schema)
        self._writer.write_table(table)
        self.rows += len(table)
        for values in self._columns.values():
            values.clear()

    def _finish(self) -> None:
        arrow, _ = require_arrow("fiber map")
        if self._columns["record"] or self._writer is None:
            self._flush()
        writer: Any = self._writer
        writer.close()
        self._writer = None
        if self._errors["record"]:
            write_table(self.errors_path, arrow.table(self._errors, schema=error_schema()))
        else:
            # Of a start that failed before the results were there.
            self.errors_path.unlink(missing_ok=True)
        try:
            _rename(self._part, self.path)
        except FileNotFoundError:
            # Another process that did the same unit has finished the folder, and cleaned it up.
            if not self.path.exists():
                raise


def columns_table(columns: Mapping[str, list[Any]], schema: Any) -> Any:
    """Convert columns, which are lists of one value for each row, to a table."""
    arrow, _ = require_arrow("fiber map")
    arrays = [_arrow_array(arrow, columns[field.name], field) for field in schema]
    return arrow.Table.from_arrays(arrays, schema=schema)


def _arrow_array(arrow: Any, values: list[Any], field: Any) -> Any:
    """Convert the values of a column, of which vectors and boxes are arrays."""
    if arrow.types.is_fixed_size_list(field.type):
        width = field.type.list_size
        flat = np.asarray(values, np.float32).reshape(-1)
        return arrow.FixedSizeListArray.from_arrays(arrow.array(flat), width)
    if arrow.types.is_list(field.type) and arrow.types.is_fixed_size_list(field.type.value_type):
        values = [np.asarray(each).tolist() for each in values]
    return arrow.array(values, type=field.type)


def write_table(path: Path, table: Any) -> None:
    """Write a Parquet file under another name, flush it to the disk and rename it."""
    _, parquet = require_arrow("fiber map")
    part = _part_of(path)
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            parquet.write_table(table, str(part))
            _rename(part, path)
        finally:
            part.unlink(missing_ok=True)


def _part_of(path: Path) -> Path:
    """Return a temporary name that no other process and thread uses."""
    own = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    return path.with_name(f"{PART}{own}-{path.name}")


def _rename(part: Path, path: Path) -> None:
    with part.open("rb+") as file:
        flush_to_disk(file)
    part.replace(path)
    # The new name is on the disk only when the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def unit_file(folder: Path, unit: int, kind: str = ROWS) -> Path:
    """Return the file of the results, or of the errors, of a unit."""
    return folder / kind / f"{unit:06d}.parquet"


def done_units(folder: Path) -> set[int]:
    """Return the numbers of the units that are done."""
    rows = folder / ROWS
    names = os.listdir(rows) if rows.is_dir() else []  # noqa: PTH208 (faster for many files)
    stems = (name.removesuffix(".parquet") for name in names if name.endswith(".parquet"))
    return {int(stem) for stem in stems if stem.isdecimal()}


def remove_parts_of(folder: Path, units: Iterable[int]) -> None:
    """Delete the temporary files of units, which dead processes left."""
    names = {unit_file(folder, unit).name for unit in units}
    for kind in (ROWS, ERRORS):
        for part in (folder / kind).glob(f"{PART}*"):
            if part.name.rpartition("-")[2] in names:
                part.unlink(missing_ok=True)


def write_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Write `map.json`, or compare it with the one that is there.

    Raises:
        FileExistsError: if the folder has other files, but no `map.json`.
        NotADirectoryError: if it is a file.
        ValueError: if `map.json` is of another run; the message names the field and both values.
    """
    path = folder / DESCRIPTION
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder for the results")
    if path.exists():
        _compare(path, read_description(folder), description)
        return
    there = sorted(each.name for each in folder.iterdir()) if folder.exists() else []
    if others := [name for name in there if not name.startswith(PART)]:
        raise FileExistsError(
            f"{folder} has {shown(others[0])} but no {DESCRIPTION}; expected a new folder, or one"
            " that `fiber map` wrote"
        )
    with made_folder(folder):
        text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
        # Several ranks may start at once; they write the same.
        write_file(path, lambda part: part.write_text(text, encoding="utf-8"), shared=True)


def read_description(folder: Path) -> dict[str, Any]:
    """Read `map.json`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not one that this version of fiber reads.
    """
    path = folder / DESCRIPTION
    found = read_format(path, "fiber.map", VERSION)
    check_fields(path, found, {"task": str, "source": dict, "texts": dict})
    try:
        task = find_bulk_task(found["task"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    check_fields(path, found["source"], SOURCE_FIELDS, "source")
    if task.method is not None:
        check_fields(path, found, {"model": dict})
        check_fields(path, found["model"], MODEL_FIELDS, "model")
    if found["texts"].get("from") not in _TEXTS_FROM:
        raise ValueError(
            f"{path}: texts.from is {shown(found['texts'].get('from'))}; expected one of"
            f" {shown_names(_TEXTS_FROM)}"
        )
    return found


def check_fields(
    path: Path, found: Mapping[str, Any], fields: Mapping[str, type], name: str = ""
) -> None:
    """Check the types of fields of an object in a JSON file.

    Args:
        path: the file.
        found: the object.
        fields: type of each field. Integers are 0 or more, and lists are of strings.
        name: name of the object in the file.

    Raises:
        ValueError: if a field is missing or has another type; the message names it.
    """
    for field, kind in fields.items():
        value = found.get(field)
        if kind is int:
            is_fit = is_integer(value)
        elif kind is list:
            is_fit = isinstance(value, list) and all(map(_is_text, value))
        else:
            is_fit = _is_text(value) if kind is str else isinstance(value, kind)
        if not is_fit:
            full = f"{name}.{field}" if name else field
            raise ValueError(f"{path}: {full} is {shown(value)}; expected {_EXPECTED[kind]}")


#: Types of fields in messages.
_EXPECTED = {
    str: "a string",
    int: f"an integer of 0 to {MAX_ID}",
    list: "a list of strings",
    dict: "an object",
}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and is_utf8(value)


def read_format(path: Path, form: str, version: int) -> dict[str, Any]:
    """Read a JSON object with the fields `format` and `version`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has more than 16 MiB, or another format or version; the message names it.
    """
    found = read_json(path, _MAX_JSON_BYTES)
    if not isinstance(found, dict) or found.get("format") != form:
        raise ValueError(f"{path} has another format; expected the field 'format' {form!r}")
    if not is_integer(found.get("version"), version, version):
        raise ValueError(
            f"{path} has version {shown(found.get('version'))}; expected {version}, the version of"
            " this fiber"
        )
    return found


def read_complete(folder: Path, task: str | None = None) -> dict[str, Any]:
    """Read `map.json` of results that are complete, and of a task if one is named.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if units are missing, or it is of another task.
    """
    about = read_description(folder)
    if task is not None and about["task"] != task:
        raise ValueError(
            f"{folder} has results of {shown(about['task'])}; expected those of {task!r}"
        )
    units, done = about["source"]["units"], done_units(folder)
    # A damaged file may name any number of units.
    if missing := units - sum(unit < units for unit in done):
        first = next(unit for unit in range(units) if unit not in done)
        raise ValueError(
            f"{folder} is not complete: {missing:,} of {units:,} units are missing, the first one"
            f" is {first}; run `fiber map` again"
        )
    return about


def _compare(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, stored, own in _differences(found, json.loads(json.dumps(expected))):
        raise ValueError(
            f"{path}: the results there are of another run: {name} is {shown(stored)}, now"
            f" {shown(own)}; pass a new folder, or delete this one"
        )


def _differences(
    stored: Mapping[str, Any], own: Mapping[str, Any], before: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the names and both values of fields that differ, no deeper than `own` goes."""
    for key in {**own, **stored}:
        name, there, here = f"{before}{printable(key, _MAX_KEY)}", stored.get(key), own.get(key)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            yield from _differences(there, here, f"{name}.")
        elif name not in _PLACES and there != here:
            yield name, there, here


def join_errors(folder: Path, units: int) -> dict[str, int] | None:
    """Write `errors.parquet` if all units are done; return counts, or None if some are not.

    Returns:
        Number of "rows", of "errors" and, of texts that were cut to the model's maximum,
        "truncated".
    """
    arrow, parquet = require_arrow("fiber map")
    if sum(unit < units for unit in done_units(folder)) < units:
        return None
    rows = truncated = 0
    tables = [error_schema().empty_table()]
    for unit in range(units):
        path, errors = unit_file(folder, unit), unit_file(folder, unit, ERRORS)
        with parquet_errors(path):
            file = parquet.ParquetFile(str(path))
        rows += file.metadata.num_rows
        has_cut = "truncated" in file.schema_arrow.names
        file.close()
        if has_cut:
            column = read_table_of(path, ["truncated"])
            check_columns(path, column, {"truncated": "bool"})
            truncated += sum(column["truncated"].to_pylist())
        if errors.exists():
            tables.append(read_rows(errors, types_of(error_schema())).select(error_schema().names))
    joined = arrow.concat_tables(tables)
    remove_parts_of(folder, range(units))
    write_table(folder / "errors.parquet", joined)
    return {"rows": rows, "errors": len(joined), "truncated": truncated}
