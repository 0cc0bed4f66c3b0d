"""Readers of Arrow and Parquet files: pictures and texts in one file, a row for each picture.

The columns are those of the files that the published code trains on (its write_*.py), and those
that public sets have in common: `rows` lists them. The picture is `image`, bytes, a path or a
struct with `bytes` or `path`; where there is none, a path in `image_path` or `file_name`. Each text
of a row becomes a record. A set larger than memory will do: texts are read at once, pictures when
they are looked at. Rows of a Parquet file are stored in groups that are read whole, so that going
through large groups in random order reads the file many times over; `fiber data pack` makes shards
without that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

from fiber.data.formats.arrow_table import Table, open_table
from fiber.data.formats.row_records import (
    Row,
    RowRecords,
    box_records,
    caption_records,
    named,
    question_records,
)
from fiber.data.formats.rows import ANSWERS, BOXES, CAPTIONS, QUESTIONS, check_one_each
from fiber.data.record import StoredImage

AnyPath = str | PathLike[str]

#: What the files are, in messages.
KIND = "published Arrow data"
TABLE_KIND = "an Arrow or Parquet table"
#: Columns that hold the picture; the first that is there counts.
IMAGES = ("image", "image_path", "file_name")
_ABOUT = ("image_id", "height", "width")


class _Tables:
    """Files whose rows follow one another."""

    def __init__(self, paths: Sequence[AnyPath], kind: str) -> None:
        self.tables = [open_table(Path(path), kind) for path in paths]

    def picture(self, place: tuple[int, int, str]) -> StoredImage:
        """Read the picture of a table, row and column."""
        number, row, column = place
        return self.tables[number].picture(column, row)

    def rows(self, wanted: Sequence[str], others: Sequence[str] = ()) -> Iterator[Row]:
        """Yield every row.

        Args:
            wanted: columns of which each file has one or more.
            others: columns that are read too where they are there.

        Raises:
            ValueError: if a file lacks a column, with those that it has.
        """
        for number, table in enumerate(self.tables):
            (image,) = _needed(table, IMAGES, "a picture")[:1]
            names = _needed(table, wanted, "what is asked for")
            names += [name for name in (*others, *_ABOUT) if name in table.columns]
            columns = [table.values(name) for name in names]
            for row, values in enumerate(zip(*columns, strict=True)):
                yield Row(
                    where=f"{table.path}: row {row}",
                    key=f"{table.path.stem}/{row}",
                    values=dict(zip(names, values, strict=True)),
                    places=((number, row, image),),
                )


def _needed(table: Table, names: Sequence[str], what: str) -> list[str]:
    """Return those of some columns that a table has, of which it needs one."""
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
        paths: files, whose records follow one another.
        kind: what they are, for messages.

    Raises:
        ModuleNotFoundError: if pyarrow is not installed.
        FileNotFoundError: if a file is missing.
        ValueError: if a file is no table, lacks a column or has a row that is not as expected.
    """
    tables = _Tables(paths, kind)
    return caption_records(tables.rows(CAPTIONS), tables.picture)


def table_questions(*paths: AnyPath, kind: str = TABLE_KIND) -> RowRecords:
    """Read questions, with answers where the rows have any.

    Arguments and errors are those of `table_captions`.
    """
    tables = _Tables(paths, kind)
    return question_records(tables.rows(QUESTIONS, ANSWERS), tables.picture)


def table_boxes(
    *paths: AnyPath,
    kind: str = TABLE_KIND,
    on_error: str = "raise",
    shots: int = 0,
    objects: bool = False,
) -> RowRecords:
    """Read boxes of classes: see `row_records.box_records`.

    Numbers of classes are given the names that the schema tells. `objects` is for metrics, which
    measure by the boxes themselves where a file has no crowds.
    Other arguments and errors are those of `table_captions`.
    """
    tables = _Tables(paths, kind)
    told = (
        table.class_names("objects", field)
        for table in tables.tables
        for field in ("category", "label", "category_id", "categories", "labels")
    )
    names = next(filter(None, told), [])
    rows = tables.rows(BOXES, ("labels",))
    return box_records(rows, tables.picture, names, on_error=on_error, shots=shots)


def table_answers(*paths: AnyPath) -> dict[int, str]:
    """Read the text of each numbered answer: columns `answers` and `answer_labels`.

    An answer that no question has is absent. Arguments and errors are those of `table_captions`;
    two texts of one number are an error too.
    """
    known: dict[int, str] = {}
    for path in map(Path, paths):
        table, names = open_table(path, KIND), ("answers", "answer_labels")
        for name in names:
            _needed(table, (name,), "answers")
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
    """Read statements about two pictures (NLVR2): columns `image_0`, `image_1`, `questions`,
    `answers` ("True" or "False") and `identifier`.

    The files hold the identifier of a pair of pictures; keys get the place of the statement in the
    row as its last part. Arguments and errors are those of `table_captions`.
    """
    tables = _Tables(paths, kind)
    out = RowRecords(tables.picture)
    names = ("questions", "answers", "identifier")
    for number, table in enumerate(tables.tables):
        for name in ("image_0", "image_1", *names):
            _needed(table, (name,), "statements about two pictures")
        columns = [table.values(name) for name in names]
        for place, (texts, answers, identifier) in enumerate(zip(*columns, strict=True)):
            row = Row(
                where=f"{table.path}: row {place}",
                key=f"{table.path.stem}/{identifier}",
                values={},
                places=((number, place, "image_0"), (number, place, "image_1")),
            )
            with named(row.where):
                _add_statements(out, row, texts, answers)
    return out


def _add_statements(out: RowRecords, row: Row, texts: Any, answers: Any) -> None:
    check_one_each(answers, "answers", texts)
    for number, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        if answer not in ("True", "False"):
            raise ValueError(f"has the answer {answer!r}; expected 'True' or 'False'")
        out.add(row, key=f"{row.key}-{number}", text=text, truth=answer == "True")
