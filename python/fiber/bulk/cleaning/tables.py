"""Folders of `fiber data dedup` and `score`: a table of records, and `clean.json`.

clean.json       kind ("duplicates" or "scores"), source, options, counts
rows.parquet     a row for each image, or for each record
sheet.png        images that would go
hashes/ ...      what `fiber map` computed
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fiber.atomic_io import PART, write_file
from fiber.bulk.output import (
    DESCRIPTION,
    SOURCE_FIELDS,
    check_fields,
    read_complete,
    read_format,
    row_schema,
    unit_file,
    write_table,
)
from fiber.bulk.parquet import parquet_errors, read_rows, require_arrow, types_of, vectors_in
from fiber.bulk.sources import reopen
from fiber.bulk.tasks import find_bulk_task
from fiber.data.record import AnyPath, ConcatRecords, RecordSet
from fiber.messages import shown, shown_names

#: Version of `clean.json` and of the tables.
VERSION = 1
#: Names in a folder.
FILE, TABLE, SHEET = "clean.json", "rows.parquet", "sheet.png"
#: Kinds of tables; rows of "scores" are of records.
_KINDS = ("duplicates", "scores")


@dataclass(frozen=True)
class RecordTable:
    """A table of the images or of the records of a source."""

    folder: Path
    #: Fields of the source, as in `map.json`.
    source: Mapping[str, Any]
    #: True if each row is of a record, False if of an image.
    is_of_records: bool
    #: A pyarrow table with the columns "record", "key" and "image".
    rows: Any

    def opened(self, data: AnyPath | None = None) -> RecordSet:
        """Open the records; `data` is where they are now, if they have moved.

        Raises:
            FileNotFoundError: if they do not exist.
            ValueError: if their number is another one.
        """
        where = self.source["data"] if data is None else data
        records = reopen({**self.source, "data": str(where)}, str(self.folder))
        if len(records) != self.source["records"]:
            raise ValueError(
                f"{where} has {len(records)} records of {self.source['source']}; expected"
                f" {self.source['records']}, as when {self.folder} was written"
            )
        numbers = np.asarray(self.rows["record"])
        if len(numbers) and numbers.max() >= len(records):
            raise ValueError(
                f"{self.folder} has a row of record {numbers.max()}; {where} has {len(records)}"
            )
        return records

    def splits(self, records: RecordSet) -> list[str | None]:
        """Return the split of each row; None for images without splits."""
        names = self.source["splits"]
        if len(names) < 2 or not isinstance(records, ConcatRecords):
            return [names[0] if names else None] * len(self.rows)
        starts = np.cumsum([0, *map(len, records.parts)])
        numbers = np.asarray(self.rows["record"], np.int64)
        return [names[place - 1] for place in np.searchsorted(starts, numbers, side="right")]


#: An image, by the split and the name, which another split may have, too.
ImageName = tuple[str | None, str]


def image_rows(table: RecordTable, records: RecordSet) -> dict[ImageName, int]:
    """Return the first row of each image of a table; records may share images."""
    rows: dict[ImageName, int] = {}
    for row, name in enumerate(image_names(table, records)):
        rows.setdefault(name, row)
    return rows


def image_names(table: RecordTable, records: RecordSet) -> list[ImageName]:
    """Return the image of each row."""
    return list(zip(table.splits(records), table.rows["image"].to_pylist(), strict=True))


def vectors_of(table: RecordTable, column: str, rows: Sequence[int]) -> np.ndarray:
    """Return the (n, D) float32 vectors of some rows."""
    return vectors_in(table.rows, column, table.folder)[np.asarray(rows, np.int64)]


def read_record_table(folder: AnyPath) -> RecordTable:
    """Read what `fiber data dedup`, `fiber data score` or `fiber map` wrote.

    Raises:
        FileNotFoundError: if the folder has neither.
        ModuleNotFoundError: if pyarrow is not installed.
        ValueError: if it is damaged, of another version, or not complete.
    """
    path = Path(folder)
    require_arrow("fiber data filter")
    if (path / DESCRIPTION).exists():
        return _map_table(path)
    if not (path / FILE).exists():
        raise FileNotFoundError(
            f"{path} has neither {FILE} nor {DESCRIPTION}; expected a folder that `fiber data"
            " score`, `fiber data dedup` or `fiber map` wrote"
        )
    about = read_format(path / FILE, "fiber.cleaning", VERSION)
    check_fields(path / FILE, about, {"kind": str, "source": dict})
    if about["kind"] not in _KINDS:
        raise ValueError(
            f"{path / FILE}: kind is {shown(about['kind'])}; expected one of {shown_names(_KINDS)}"
        )
    check_fields(path / FILE, about["source"], SOURCE_FIELDS, "source")
    rows = read_rows(path / TABLE)
    return RecordTable(path, about["source"], about["kind"] == "scores", rows)


def _map_table(folder: Path) -> RecordTable:
    arrow, _ = require_arrow("fiber data filter")
    about = read_complete(folder)
    source = about["source"]
    types = types_of(row_schema(find_bulk_task(about["task"])))
    units = [read_rows(unit_file(folder, unit), types) for unit in range(source["units"])]
    if not units:
        raise ValueError(f"{folder} has no records")
    with parquet_errors(folder):
        rows = arrow.concat_tables(units)
    return RecordTable(folder, source, about["texts"]["from"] == "records", rows)


def write_cleaned(folder: Path, kind: str, rows: Any, about: Mapping[str, Any]) -> None:
    """Write the table and `clean.json`."""
    # A table without its description is not read.
    (folder / FILE).unlink(missing_ok=True)
    write_table(folder / TABLE, rows)
    content = {"format": "fiber.cleaning", "version": VERSION, "kind": kind, **about}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_file(folder / FILE, lambda part: part.write_text(text, encoding="utf-8"))


def check_output(folder: Path, kind: str, parts: tuple[str, ...]) -> None:
    """Raise FileExistsError if a folder has files that are not of an earlier run of a kind."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder for the results")
    own = {FILE, TABLE, SHEET, *parts}
    there = sorted(each.name for each in folder.iterdir()) if folder.exists() else []
    for name in there:
        if name not in own and not name.startswith(PART):
            raise FileExistsError(
                f"{folder} has {shown(name)}; expected a new folder, or one that `fiber data"
                f" {kind}` wrote"
            )
