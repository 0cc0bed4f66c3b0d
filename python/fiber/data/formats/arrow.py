"""Arrow and Parquet tables that store images and their texts in one file, one row per image.

Supported columns are those that the published code writes (in its write_*.py) and those common in
public datasets; see `rows`. The column `image` contains bytes, paths, or structs with `bytes` or
`path`. If there is no such column, `image_path` or `file_name` contains paths. Each text of a row
becomes a record.

All texts are read at once, but images are read on access, so tables may be larger than memory.
Parquet row groups are read as a whole, so random access to large row groups is slow. `fiber data
pack` writes shards that avoid this cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fiber.data.datasets.snli_ve import ENTAILMENT
from fiber.data.formats.annotation_file import named
from fiber.data.formats.arrow_table import Table, open_table
from fiber.data.formats.json_values import is_integer
from fiber.data.formats.layout import PUBLISHED_ARROW, TABLES
from fiber.data.formats.row_records import DataRow, RowRecords, RowSource
from fiber.data.formats.rows import CATEGORIES, FIELDS, check_id, check_one_each
from fiber.data.record import AnyPath, StoredImage
from fiber.messages import shown, shown_names

#: Possible image columns; the first one present is used.
IMAGES = ("image", "image_path", "file_name")
_METADATA = ("image_id", "height", "width")
#: Number of labels of answers that a table may have; the published files have 3,129.
_MAX_ANSWERS = 100_000


class Tables(RowSource):
    """Rows of one or more table files, as one sequence.

    Raises:
        ModuleNotFoundError: if pyarrow is not installed.
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not a table; on access, if it lacks a column or a row is invalid.
    """

    class_names_hint = ", or a ClassLabel of objects.category in the schema (datasets.Features)"

    def __init__(self, paths: Sequence[AnyPath], kind: str = TABLES) -> None:
        super().__init__()
        self.tables = [open_table(Path(path), kind) for path in paths]

    @property
    def class_names(self) -> Sequence[str]:
        """Class names in the schema of the first file that has them."""
        names_of = (
            table.class_names("objects", field) for table in self.tables for field in CATEGORIES
        )
        return next(filter(None, names_of), ())

    def image(self, location: tuple[int, int, str]) -> StoredImage:
        """Read the image at (table, row, column)."""
        number, row, column = location
        return self.tables[number].image(column, row)

    def rows(self, kind: str) -> Iterator[DataRow]:
        """Yield the rows of the given kind; see `RowSource`."""
        required, optional = FIELDS[kind]
        for number, table in enumerate(self.tables):
            image = _columns_in(table, IMAGES)[0]
            names = _columns_in(table, required)
            names += [name for name in (*optional, *_METADATA) if name in table.columns]
            values_of = [table.values(name) for name in names]
            for row, values in enumerate(zip(*values_of, strict=True)):
                yield DataRow(
                    where=f"{table.path}: row {row}",
                    key=f"{table.path.stem}/{row}",
                    values=dict(zip(names, values, strict=True)),
                    locations=((number, row, image),),
                )


def _columns_in(table: Table, names: Sequence[str]) -> list[str]:
    """Return the `names` that are columns of a table; raise ValueError if there are none."""
    found = [name for name in names if name in table.columns]
    if not found:
        wanted = " or ".join(map(repr, names))
        raise ValueError(
            f"{table.path} has no column {wanted}; available columns: {shown_names(table.columns)}"
        )
    return found


def table_answers(*paths: AnyPath) -> dict[int, str]:
    """Map answer labels to answer texts, from the columns `answers` and `answer_labels`.

    Labels that do not occur in the tables are omitted.

    Raises:
        ValueError: for the reasons listed in `Tables`, or if a label has two different texts.
    """
    known: dict[int, str] = {}
    for table in Tables(paths, PUBLISHED_ARROW).tables:
        texts, labels = (
            table.values(*_columns_in(table, (name,))) for name in ("answers", "answer_labels")
        )
        for row, (own_texts, own_labels) in enumerate(zip(texts, labels, strict=True)):
            with named(f"{table.path}: row {row}"):
                for text, label in _labelled_answers(own_texts, own_labels):
                    if known.setdefault(label, text) != text:
                        raise ValueError(
                            f"has text {shown(text)} for answer label {label}; expected"
                            f" {shown(known[label])}, as in an earlier row"
                        )
    return known


def _labelled_answers(texts: Any, labels: Any) -> Iterator[tuple[str, int]]:
    """Yield the answers to all questions of a row with their labels."""
    check_one_each(labels, "answer_labels", texts)
    for own_texts, own_labels in zip(texts, labels, strict=True):
        check_one_each(own_labels, "answer_labels", own_texts)
        for text, label in zip(own_texts, own_labels, strict=True):
            if not isinstance(text, str) or not is_integer(label, 0, _MAX_ANSWERS - 1):
                raise ValueError(
                    f"has answer {shown(text)} with label {shown(label)}; expected a string and an"
                    f" integer below {_MAX_ANSWERS:,}"
                )
            yield text, label


def entailment_records(tables: Tables) -> RowRecords:
    """Read hypotheses about images (SNLI-VE), as METER's code writes them.

    The columns are `image`, `sentences` (lists of a premise and a hypothesis) and `labels` (numbers
    of the classes). Keys end in the index of the hypothesis in the row.

    Raises:
        ValueError: if a row is invalid; the error gives its location.
    """
    out = RowRecords(tables)
    for number, table in enumerate(tables.tables):
        image = _columns_in(table, IMAGES)[0]
        columns = [table.values(*_columns_in(table, (name,))) for name in ("sentences", "labels")]
        for row_number, (sentences, labels) in enumerate(zip(*columns, strict=True)):
            row = DataRow(
                where=f"{table.path}: row {row_number}",
                key=f"{table.path.stem}/{row_number}",
                values={},
                locations=((number, row_number, image),),
            )
            with named(row.where):
                check_one_each(labels, "labels", sentences)
                for index, (pair, label) in enumerate(zip(sentences, labels, strict=True)):
                    if not is_integer(label, 0, len(ENTAILMENT) - 1):
                        raise ValueError(f"has label {shown(label)}; expected 0, 1 or 2")
                    if not isinstance(pair, list) or len(pair) != 2:
                        raise ValueError(f"has {shown(pair)} in 'sentences'; expected 2 sentences")
                    name = ENTAILMENT[label]
                    key = f"{row.key}-{index}"
                    out.add(row, key=key, text=pair[1], answers={name: 1.0}, group=name)
    return out


def statement_records(tables: Tables) -> RowRecords:
    """Read statements about two images (NLVR2).

    The columns are `image_0`, `image_1`, `questions`, `answers` ("True" or "False") and
    `identifier`, which names the image pair. Keys end in the index of the statement in the row.

    Raises:
        ValueError: if a row is invalid; the error gives its location.
    """
    out = RowRecords(tables)
    for number, table in enumerate(tables.tables):
        names = ("image_0", "image_1", "questions", "answers", "identifier")
        for name in names:
            _columns_in(table, (name,))
        columns = [table.values(name) for name in names[2:]]
        for row_number, (texts, answers, identifier) in enumerate(zip(*columns, strict=True)):
            where = f"{table.path}: row {row_number}"
            with named(where):
                row = DataRow(
                    where=where,
                    key=f"{table.path.stem}/{check_id(identifier, 'identifier')}",
                    values={},
                    locations=((number, row_number, "image_0"), (number, row_number, "image_1")),
                )
                check_one_each(answers, "answers", texts)
                for index, (text, answer) in enumerate(zip(texts, answers, strict=True)):
                    if answer not in ("True", "False"):
                        raise ValueError(f"has answer {shown(answer)}; expected 'True' or 'False'")
                    out.add(row, key=f"{row.key}-{index}", text=text, truth=answer == "True")
    return out
