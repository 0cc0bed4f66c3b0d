"""`fiber data filter`: a new packed directory of the records that a condition chooses."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fiber.atomic_io import DISK_FULL, explain_write_errors, new_directory
from fiber.bulk.cleaning.sheet import BLACK, COLUMNS, GOES, ROWS, SheetImage, save_sheet, spread
from fiber.bulk.cleaning.tables import (
    ImageName,
    RecordTable,
    image_names,
    image_rows,
    read_record_table,
)
from fiber.bulk.parquet import require_arrow
from fiber.bulk.sources import IMAGES, BareImages, name_of_image
from fiber.bulk.where import Condition, column_kinds, parse_where
from fiber.data.fingerprint import fingerprint_of
from fiber.data.image_file import extension_of
from fiber.data.record import AnyPath, LazyImages, Record, RecordSet
from fiber.data.storage.pack_description import is_pack
from fiber.data.storage.remote_pack import local_path
from fiber.data.tools.discover import Part
from fiber.data.tools.pack import SHARD_BYTES, pack
from fiber.messages import shown, shown_names

#: Columns that tables share; those of the first table are used.
_SHARED = ("record", "key", "image", "split", "text", "height", "width")


@dataclass
class _Chosen:
    """Records and images that stay, and counts of the others."""

    table: RecordTable
    records: RecordSet
    #: Key of each record of the table by its index, and whether it stays.
    rows: dict[int, tuple[str, bool]]
    #: Images of the table, and whether they stay: an image does if one of its records does.
    images: dict[ImageName, bool]
    #: Images of packed directories by split and number, which pairs of images refer to.
    numbered: dict[tuple[str | None, Hashable], ImageName] = field(default_factory=dict)
    #: Records by "kept", "dropped" and "without_row".
    counts: Counter[str] = field(default_factory=Counter)

    def keeps(self, part: Part, index: int, record: Record) -> bool:
        """Return whether a record of any source stays, and count it."""
        source = self.table.source
        stays: bool | None
        if self.table.is_of_records and part.source == source["source"]:
            splits, parts = source["splits"], getattr(self.records, "parts", [self.records])
            place = splits.index(part.split)
            if len(splits) > 1:
                index += sum(map(len, parts[:place]))
            key, stays = self.rows.get(index, (record.key, None))
            if key != record.key:
                raise ValueError(
                    f"{source['data']} has changed since {self.table.folder} was written: record"
                    f" {index} is {shown(record.key)}, was {shown(key)}"
                )
        else:
            there = [self.images.get(name) for name in self._names(part, record)]
            stays = None if None in there else all(there)
        self.counts["without_row" if stays is None else "kept" if stays else "dropped"] += 1
        return bool(stays)

    def _names(self, part: Part, record: Record) -> list[ImageName]:
        if len(record.images) == 1:
            return [(part.split, name_of_image(record))]
        if isinstance(record.images, LazyImages):
            unknown = (part.split, "")
            locations = [(part.split, each) for each in record.images.locations]
            return [self.numbered.get(each, unknown) for each in locations]
        paths = ["" if isinstance(each, bytes) else os.fspath(each) for each in record.images]
        return [(part.split, path) for path in paths]


def filter_records(
    tables: Sequence[AnyPath],
    where: str,
    output: AnyPath | None = None,
    *,
    data: AnyPath | None = None,
    sheet: AnyPath | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a new packed directory of the records for which a condition is true.

    The columns are those of the tables. A record that has no row, such as one that could not be
    read, does not stay. An image stays if one of its records does; the records of other sources
    (boxes, questions) stay with their images. Of a folder of images without texts, the images that
    stay are copied.

    Args:
        tables: folders that `fiber data score`, `fiber data dedup` or `fiber map` wrote, of the
            same data.
        where: condition, as of `fiber search --where`.
        output: new or empty folder; None writes none.
        data: where the data are now. Default: where they were.
        sheet: file for a contact sheet of what would go.
        shard_bytes: maximum size of a shard in bytes.
        progress: called with the images written and all images.

    Returns:
        "rows", "kept" and "dropped" of the tables; with an output, "records", the number of records
        of all sources that stay, "dropped_records", and "without_row".

    Raises:
        FileExistsError: if the output has files.
        FileNotFoundError: if a folder or the data do not exist.
        ModuleNotFoundError: if pyarrow is not installed.
        OSError: if a file cannot be written; the output is then not created.
        ValueError: if the condition is wrong or chooses nothing, the tables are of different data,
            or the data have changed.
    """
    require_arrow("fiber data filter")
    if not tables:
        raise ValueError("filter: expected one or more folders, got none")
    read = [read_record_table(each) for each in tables]
    _check_same_data(read)
    # A row of each record, if there is such a table.
    read.sort(key=lambda table: not table.is_of_records)
    main, *others = read
    records = main.opened(data)
    _check_unchanged(main, records)
    rows = _joined(main, others, records, data)
    condition = parse_where(where, column_kinds(rows.schema))
    mask = condition.mask(rows.select(sorted(condition.columns()))).tolist()
    if not any(mask):
        raise ValueError(f"--where {where}: is true for none of {len(mask)} rows")
    counts = {"rows": len(mask), "kept": sum(mask), "dropped": len(mask) - sum(mask)}
    if sheet is not None:
        _save_sheet(Path(sheet), rows, mask, condition, records)
    if output is None:
        return counts
    if main.source["source"] == IMAGES:
        written = _copy_images(main, records, mask, Path(output), progress)
        return {"output": str(output), **counts, "records": written}
    chosen = _chosen(main, records, mask)
    now = local_path(data if data is not None else main.source["data"])
    if not is_pack(now):
        # Locations of other formats are those within a file.
        chosen.numbered.clear()
    pack(
        now,
        output,
        splits=main.source["splits"],
        shard_bytes=shard_bytes,
        progress=progress,
        keep=chosen.keeps,
    )
    own = chosen.counts
    counts |= {"records": own["kept"], "dropped_records": own["dropped"]}
    return {"output": str(output), **counts, "without_row": own["without_row"]}


def _check_unchanged(table: RecordTable, records: RecordSet) -> None:
    """Raise ValueError if records are not those of a table."""
    now = records.fingerprint if isinstance(records, BareImages) else fingerprint_of(records)
    if now != table.source["fingerprint"]:
        raise ValueError(
            f"{table.source['data']} has changed since {table.folder} was written; write that again"
        )


def _check_same_data(tables: Sequence[RecordTable]) -> None:
    first = tables[0]
    for table in tables[1:]:
        if table.source["data"] != first.source["data"]:
            raise ValueError(
                f"{table.folder} is of {table.source['data']}, and {first.folder} of"
                f" {first.source['data']}; expected tables of the same data"
            )
        of_records = [each for each in (first, table) if each.is_of_records]
        if table.source != first.source and len(of_records) != 1:
            names = [f"{each.folder} ({each.source['source']})" for each in (first, table)]
            raise ValueError(f"{names[0]} and {names[1]} are of other records of the same data")


def _joined(
    main: RecordTable, others: Sequence[RecordTable], records: RecordSet, data: AnyPath | None
) -> Any:
    """Return the columns of all tables for the rows of the first one."""
    arrow, _ = require_arrow("fiber data filter")
    rows = main.rows
    names = image_names(main, records)
    for table in others:
        own = [name for name in table.rows.column_names if name not in _SHARED]
        if twice := [name for name in own if name in rows.column_names]:
            raise ValueError(
                f"{main.folder} and {table.folder} both have the columns {shown_names(twice)};"
                " expected tables of other columns"
            )
        if table.is_of_records:
            numbers = table.rows["record"].to_pylist()
            there = {number: row for row, number in enumerate(numbers)}
            found = [there.get(number) for number in rows["record"].to_pylist()]
        else:
            of_images = image_rows(table, table.opened(data))
            found = [of_images.get(name) for name in names]
        taken = table.rows.select(own).take(arrow.array(found, arrow.int64()))
        for name in own:
            rows = rows.append_column(taken.schema.field(name), taken[name])
    return rows


def _chosen(main: RecordTable, records: RecordSet, mask: Sequence[bool]) -> _Chosen:
    numbers, keys = main.rows["record"].to_pylist(), main.rows["key"].to_pylist()
    chosen = _Chosen(main, records, {}, {})
    for number, key, split, stays in zip(numbers, keys, main.splits(records), mask, strict=True):
        record = records[number]
        # Paths in the table are those of where the data were.
        name = (split, name_of_image(record))
        chosen.rows[number] = key, stays
        chosen.images[name] = chosen.images.get(name, False) or stays
        if isinstance(record.images, LazyImages):
            chosen.numbered[split, record.images.locations[0]] = name
    return chosen


def _copy_images(
    main: RecordTable,
    records: RecordSet,
    mask: Sequence[bool],
    output: Path,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Copy the images that stay into a new folder, under their names."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(f"{output} is not an empty folder; expected a new or empty folder")
    numbers = [n for n, stays in zip(main.rows["record"].to_pylist(), mask, strict=True) if stays]
    with explain_write_errors(output, DISK_FULL), new_directory(output) as folder:
        for done, number in enumerate(numbers, start=1):
            record = records[number]
            stored = record.images[0]
            content = stored if isinstance(stored, bytes) else Path(stored).read_bytes()
            path = folder / record.key
            if isinstance(stored, bytes):
                path = path.with_name(f"{path.name}.{extension_of(content)}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if progress is not None:
                progress(done, len(numbers))
    return len(numbers)


def _save_sheet(
    path: Path, rows: Any, mask: Sequence[bool], condition: Condition, records: RecordSet
) -> None:
    """Draw rows that would go, at regular distances, with the columns of the condition."""
    gone = [row for row, stays in enumerate(mask) if not stays]
    some = [gone[number] for number in spread(len(gone), COLUMNS * ROWS)]
    names = sorted(condition.columns())
    tiles = []
    for row in rows.select([*dict.fromkeys([*names, "record", "key"])]).take(some).to_pylist():
        values = ", ".join(f"{name} {_text_of(row[name])}" for name in names)
        image = records[row["record"]].images[0]
        text = records[row["record"]].text or Path(row["key"]).name
        tiles.append(SheetImage(image, ((values, GOES), (text, BLACK))))
    title = f"{len(gone)} of {len(mask)} rows would go; here are {len(tiles)}"
    save_sheet(path, title, [tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)])


def _text_of(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
