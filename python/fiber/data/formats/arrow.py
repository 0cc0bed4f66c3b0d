"""Arrow and Parquet tables with one row per image, texts and images in one file.

Supported columns are those of the published code's files (its write_*.py) and the common ones of
public data sets; see `rows`. The image is in `image` as bytes, a path, or a struct with `bytes` or
`path`; otherwise `image_path` or `file_name` is its path. Each text of a row becomes a record.

Texts are read at once and images on access, so tables may be larger than memory. Row groups of
Parquet are read as a whole: random access to large groups reads the file many times. `fiber data
pack` makes shards without that cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from fiber.data.formats.arrow_table import Table, open_table
from fiber.data.formats.row_records import (
    DataRow,
    RowRecords,
    box_records,
    caption_records,
    named,
    question_records,
)
from fiber.data.formats.rows import (
    ANSWERS,
    BOXES,
    CAPTIONS,
    CATEGORIES,
    QUESTIONS,
    check_one_each,
)
from fiber.data.record import AnyPath, StoredImage

#: Names of the formats in messages.
KIND = "published Arrow data"
TABLE_KIND = "an Arrow or Parquet table"
#: Columns with the image; the first one present is used.
IMAGES = ("image", "image_path", "file_name")
_METADATA = ("image_id", "height", "width")


class _Tables:
    """Files as one sequence of rows."""

    def __init__(self, paths: Sequence[AnyPath], kind: str) -> None:
        self.tables = [open_table(Path(path), kind) for path in paths]

    def image(self, location: tuple[int, int, str]) -> StoredImage:
        """Read the image at (table, row, column)."""
        number, row, column = location
        return self.tables[number].image(column, row)

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[DataRow]:
        """Yield every row.

        Args:
            columns: each file must have at least one of them.
            optional: columns that are read if present.

        Raises:
            ValueError: if a file lacks a column, with the columns that it has.
        """
        for number, table in enumerate(self.tables):
            (image,) = _columns_there(table, IMAGES, "an image")[:1]
            names = _columns_there(table, columns, "the requested data")
            names += [name for name in (*optional, *_METADATA) if name in table.columns]
            values_of = [table.values(name) for name in names]
            for row, values in enumerate(zip(*values_of, strict=True)):
                yield DataRow(
                    where=f"{table.path}: row {row}",
                    key=f"{table.path.stem}/{row}",
                    values=dict(zip(names, values, strict=True)),
                    locations=((number, row, image),),
                )


def _columns_there(table: Table, names: Sequence[str], what: str) -> list[str]:
    """Return the columns that a table has of `names`; it needs at least one."""
    found = [name for name in names if name in table.columns]
    if not found:
        raise ValueError(
            f"{table.path} has no column {' or '.join(map(repr, names))} with {what}; it has"
            f" {', '.join(map(repr, table.columns)) or 'none'}"
        )
    return found


def table_captions(*paths: AnyPath, kind: str = TABLE_KIND) -> RowRecords:
    """Read captions.

    Args:
        paths: files, in order.
        kind: name of the format in messages.

    Raises:
        ModuleNotFoundError: if pyarrow is not installed.
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not a table, lacks a column or has an invalid row.
    """
    tables = _Tables(paths, kind)
    return caption_records(tables.rows(CAPTIONS), tables.image)


def table_questions(*paths: AnyPath, kind: str = TABLE_KIND) -> RowRecords:
    """Read questions, and answers if there are any.

    Arguments and errors as in `table_captions`.
    """
    tables = _Tables(paths, kind)
    return question_records(tables.rows(QUESTIONS, ANSWERS), tables.image)


def table_boxes(
    *paths: AnyPath,
    kind: str = TABLE_KIND,
    on_error: str = "raise",
    shots: int = 0,
    objects: bool = False,
) -> RowRecords:
    """Read boxes of classes: see `row_records.box_records`.

    Numeric classes are named by the schema. `objects` has no effect: without crowds, metrics use
    the boxes themselves. Other arguments and errors as in `table_captions`.
    """
    tables = _Tables(paths, kind)
    names_of = (
        table.class_names("objects", field) for table in tables.tables for field in CATEGORIES
    )
    names = next(filter(None, names_of), [])
    rows = tables.rows(BOXES, ("labels",))
    return box_records(rows, tables.image, names, on_error=on_error, shots=shots)


def table_answers(*paths: AnyPath) -> dict[int, str]:
    """Read the text of each answer number from the columns `answers` and `answer_labels`.

    Numbers that no question has are missing. Arguments and errors as in `table_captions`; two texts
    of one number are an error as well.
    """
    known: dict[int, str] = {}
    for path in map(Path, paths):
        table, names = open_table(path, KIND), ("answers", "answer_labels")
        for name in names:
            _columns_there(table, (name,), "answers")
        texts, labels = (table.values(name) for name in names)
        for row, (own_texts, own_labels) in enumerate(zip(texts, labels, strict=True)):
            for text, label in zip(chain(*own_texts), chain(*own_labels), strict=True):
                if known.setdefault(label, text) != text:
                    raise ValueError(
                        f"{path}: row {row} has answer {label} as {text!r}; expected"
                        f" {known[label]!r}, as before"
                    )
    return known


def table_statements(*paths: AnyPath, kind: str = TABLE_KIND) -> RowRecords:
    """Read statements about two images (NLVR2): columns `image_0`, `image_1`, `questions`,
    `answers` ("True" or "False") and `identifier`.

    `identifier` is that of the pair of images; keys end in the index of the statement in the row.
    Arguments and errors as in `table_captions`.
    """
    tables = _Tables(paths, kind)
    out = RowRecords(tables.image)
    names = ("questions", "answers", "identifier")
    for number, table in enumerate(tables.tables):
        for name in ("image_0", "image_1", *names):
            _columns_there(table, (name,), "statements about two images")
        columns = [table.values(name) for name in names]
        for place, (texts, answers, identifier) in enumerate(zip(*columns, strict=True)):
            row = DataRow(
                where=f"{table.path}: row {place}",
                key=f"{table.path.stem}/{identifier}",
                values={},
                locations=((number, place, "image_0"), (number, place, "image_1")),
            )
            with named(row.where):
                _add_statements(out, row, texts, answers)
    return out


def _add_statements(out: RowRecords, row: DataRow, texts: Any, answers: Any) -> None:
    check_one_each(answers, "answers", texts)
    for number, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        if answer not in ("True", "False"):
            raise ValueError(f"has the answer {answer!r}; expected 'True' or 'False'")
        out.add(row, key=f"{row.key}-{number}", text=text, truth=answer == "True")
