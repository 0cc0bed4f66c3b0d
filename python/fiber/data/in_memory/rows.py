"""Read records from tables in memory; see `tables` for what is recognized.

Columns are those of tables in files (see `fiber.data.formats.rows`), and `split`. An image is a
path, bytes, a dict with `bytes` or `path`, or what `load_image` takes, such as a PIL image.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from fiber.data.datasets.registry import HELD_OUT, KINDS, SOURCES
from fiber.data.formats.annotation_file import is_file
from fiber.data.formats.json_values import file_name_problem
from fiber.data.formats.row_records import DataRow, RowRecords, RowSource
from fiber.data.formats.rows import CATEGORIES, FIELDS
from fiber.data.in_memory.tables import Rows, open_memory_table, tables_by_split
from fiber.data.record import RecordSet, StoredImage
from fiber.data.storage import held_out
from fiber.messages import printable, shown, shown_names

#: Possible image columns; the first one present is used.
IMAGES = ("image", "image_path", "file_name")
_SPLIT = "split"
_METADATA = ("image_id", "height", "width")
_MOST_FIELDS = 12


def open_rows(source: str, data: Rows, split: str, **options: Any) -> RecordSet:
    """Read the records of a source and split.

    A table without the column `split` is read as a whole. Without a split "val" beside others, a
    part of "train" is held out as "val" (see `held_out`).

    Raises:
        TypeError: if a row is no dict.
        ValueError: if the source is not read from rows, there is no such split, or a row is
            invalid; the error gives its index.
        FileNotFoundError: if the first image is missing.
    """
    kind = SOURCES[SOURCES[source].of or source]
    if not kind.rows:
        readable = [name for name, row in KINDS.items() if row.rows]
        raise ValueError(
            f"source {source!r} is not read from rows in memory; expected one of"
            f" {', '.join(readable)}, or a folder or file"
        )
    there = splits_in_memory(data)
    options = {name: value for name, value in options.items() if name in kind.options}
    divides = HELD_OUT not in there and split in ("train", HELD_OUT) and "train" in there
    if there and split not in there and not divides:
        raise ValueError(
            f"data has no rows for split {shown(split)}; available splits: {shown_names(there)}"
        )
    shots = options.pop("shots", 0) if divides else options.get("shots", 0)
    own = "train" if divides else split
    records: RowRecords = resolve_name(kind.row_reader)(_MemoryRows(data, own), **options)
    return held_out.divided(records, split, shots) if divides else records


def splits_in_memory(data: Rows) -> list[str]:
    """Return the splits of rows, in order; [] if they have none.

    Raises:
        ValueError: if some rows of a table have a `split`, and others not.
    """
    tables = tables_by_split(data)
    if "" not in tables:
        return list(tables)
    table = open_memory_table(tables[""])
    return list(dict.fromkeys(_splits(table.values(_SPLIT)))) if _SPLIT in table.columns else []


def _splits(given: Sequence[Any]) -> list[str]:
    for index, split in enumerate(given):
        if not isinstance(split, str) or not split:
            raise ValueError(
                f"data: row {index} has 'split' {shown(split)}; expected a name such as 'train' in"
                " all rows, or in none"
            )
    return list(given)


class _MemoryRows(RowSource):
    """Rows of a split of a table."""

    class_names_hint = ", or a ClassLabel (datasets.Features)"

    def __init__(self, data: Rows, split: str) -> None:
        super().__init__()
        tables = tables_by_split(data)
        self._split = split if "" not in tables else ""
        self._table = open_memory_table(tables[self._split])
        columns = self._table.columns
        self._image = next((name for name in IMAGES if name in columns), "")
        if not self._image:
            raise self._lacks(" or ".join(map(repr, IMAGES)))
        self._are_paths = False
        self._own: Sequence[int] | None = None
        if not self._split and _SPLIT in columns:
            splits = _splits(self._table.values(_SPLIT))
            self._own = [index for index, each in enumerate(splits) if each == split]

    def _lacks(self, names: str) -> ValueError:
        return ValueError(
            f"data: the {self._table.kind} has no {names}; add it, or rename a column"
            f" ({shown_names(self._table.columns[:_MOST_FIELDS])})"
        )

    @property
    def class_names(self) -> Sequence[str]:
        """Class names of a ClassLabel."""
        found = (self._table.class_names("objects", field) for field in CATEGORIES)
        return next(filter(None, found), ())

    def image(self, location: int) -> StoredImage:
        """Return the image of a row; those in memory are encoded as PNG."""
        value = self._table.value(self._image, location)
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if isinstance(value, str | os.PathLike):
            return os.fspath(value)
        from PIL import Image

        from fiber.data.image import load_image

        try:
            pixels = load_image(value, keep_alpha=True)
        except (TypeError, ValueError) as problem:
            raise ValueError(f"data: row {location} has in {self._image!r}: {problem}") from None
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def rows(self, kind: str) -> Iterator[DataRow]:
        """Yield the rows of a kind; see `RowSource`."""
        required, optional = FIELDS[kind]
        table = self._table
        names = [name for name in (*required, *optional, *_METADATA) if name in table.columns]
        if not set(names) & set(required):
            raise self._lacks(" or ".join(map(repr, required)))
        columns = {name: table.values(name) for name in names}
        number = len(columns[names[0]])
        found = 0
        for row in range(number) if self._own is None else self._own:
            values = {name: own[row] for name, own in columns.items() if own[row] is not None}
            if not any(name in values for name in required):
                self.skip(f"rows without {kind}")
                continue
            found += 1
            self._name_image(row, values, is_first=found == 1)
            where = f"data: row {row}" if not self._split else f"data[{self._split!r}]: row {row}"
            key = f"{self._split or 'rows'}/{row}"
            yield DataRow(where, key, values, (row,))

    def _name_image(self, row: int, values: dict[str, Any], *, is_first: bool) -> None:
        """Give rows of one file one `image_id`, and check that the first file exists."""
        value = self._table.value(self._image, row) if is_first or self._are_paths else None
        path = value.get("path") if isinstance(value, Mapping) and not value.get("bytes") else value
        is_path = isinstance(path, str | os.PathLike)
        if is_first:
            self._are_paths = is_path
        if not is_path:
            return
        name = os.fspath(path)
        if (problem := file_name_problem(name)) is not None:
            raise ValueError(f"data: row {row} has in {self._image!r} {problem}")
        if is_first and not is_file(Path(name)):
            here = printable(str(Path.cwd()), 500)
            raise FileNotFoundError(
                f"data: row {row}: image {shown(name)} not found in {here};"
                " pass an absolute path, or change the folder"
            )
        values.setdefault("image_id", name)
