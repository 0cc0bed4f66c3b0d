"""Rows of the table of sources, and their files. Imports no reader, as the table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

#: Kinds of files that several sources have.
LINES, TABLES = "JSON lines, a JSON list or CSV", "an Arrow or Parquet table"
PUBLISHED_ARROW, _SHARDS = "published Arrow data", "WebDataset shards"
#: Extensions of files with rows, which may come in parts. A part given by name is read on its own.
PART_SUFFIXES = (".arrow", ".parquet", ".tar")


class Layout(NamedTuple):
    """Names of annotation files of a source, and their reader."""

    #: "module:function", called with (folder, split, annotations=file); for files
    #: with `PART_SUFFIXES`, with their rows (a `RowSource`).
    reader: str
    #: Kind of file, for messages; see `where_to_get`.
    kind: str
    #: File names relative to the data folder, with wildcards ("*") and the placeholder "{split}";
    #: the first that exists is used.
    names: tuple[str, ...] = ()
    #: The only split in the files; "" if the split follows from the name or content.
    split: str = ""
    #: Name of an additional file that is required.
    companion: str = ""
    #: True if a file contains all splits.
    has_splits: bool = False
    #: Used only if no other layout matches, since unrelated files may have such names.
    is_fallback: bool = False
    #: "module:function" that returns whether a file with such a name is of this
    #: kind; "" if all are.
    accepts: str = ""
    #: "module:function" that returns the splits of a folder, or of a file with such a name, each
    #: with the path that the reader gets; {} if it is of another format. "": names tell the split.
    recognize: str = ""
    #: True if a part of "train" is "val" if a folder has no "val".
    holds_out: bool = False


class Source(NamedTuple):
    """A kind of records, or a named dataset of that kind."""

    #: Kind of records of a named dataset, which is a source, too.
    of: str = ""
    #: Layout whose file the reader finds by itself; `fiber data` writes most of them.
    standard: Layout | None = None
    #: Other layouts, without those of `rows`; see `layouts_of`.
    layouts: tuple[Layout, ...] = ()
    #: Reader of rows of tables; "" if there are no tables of the source.
    row_reader: str = ""
    #: Kind of rows in tables, shards and JSON lines, a key of `fiber.data.formats.rows.FIELDS`. A
    #: file may have several kinds.
    rows: str = ""
    #: Keys that only files of the source have: all of one of the tuples. "json.images" is a key of
    #: a JSON object, "json.images.caption" one of the first entry of that list, "lines.label" a
    #: field of JSON lines, "rows.image_0" one of tables and shards, "*refcoco*" a pattern of the
    #: file name. If several match, one that includes another wins, or else the first source.
    marks: tuple[tuple[str, ...], ...] = ()
    #: Options of `open_source` that all readers of the source have: "on_error" (skip invalid
    #: boxes), "shots" (images per class), "objects" (all boxes, for metrics) or "masks" (the masks
    #: of the objects, too).
    options: tuple[str, ...] = ()
    #: True if records have class names, some of which are sampled for each prompt.
    has_classes: bool = False
    #: Splits that are ignored if they are missing and "train" is requested, too.
    optional_splits: tuple[str, ...] = ()
    #: "module:function" that finds the COCO file of a split, which may be named in
    #: any way; "" if names of files tell the split.
    find: str = ""
    #: True if a task may be trained on the source.
    in_tasks: bool = True
    #: Where to get the files, by the beginning of `Layout.kind`.
    where: Mapping[str, str] = MappingProxyType({})


def arrow_layout(row_reader: str, name: str, split: str = "") -> Layout:
    """Return the layout of the published code's Arrow files."""
    return Layout(row_reader, PUBLISHED_ARROW, (name,), split)


def rows_layouts(row_reader: str) -> list[Layout]:
    """Return layouts of WebDataset shards and of tables named as on the Hugging Face Hub."""
    tables = (
        "{split}.parquet",
        "{split}-*-of-*.parquet",
        "data/{split}-*-of-*.parquet",
        "{split}/data-*-of-*.arrow",
    )
    # "val" is called "validation" on the Hub.
    validation = tuple(name.replace("{split}", "validation") for name in tables)
    shards = ("{split}-[0-9]*.tar", "{split}_[0-9]*.tar", "{split}.tar", "{split}/*.tar")
    return [
        Layout(row_reader, TABLES, tables, holds_out=True),
        Layout(row_reader, TABLES, validation, "val"),
        Layout(row_reader, _SHARDS, shards, holds_out=True),
        Layout(row_reader, _SHARDS, ("[0-9]*.tar",), "train", is_fallback=True, holds_out=True),
    ]


def own_layouts(reader: str) -> tuple[Layout, ...]:
    """Return layouts of a user's own files. NLVR2 uses "{split}.json", which is thus a fallback."""
    return (
        Layout(reader, LINES, ("{split}.jsonl", "{split}.csv"), holds_out=True),
        Layout(reader, LINES, ("{split}.json",), is_fallback=True, holds_out=True),
    )


def folder_layout(kind: str, module: str, *names: str) -> Layout:
    """Return the layout of a format of folders, whose module has `find` and a reader."""
    module = f"fiber.data.formats.folders.{module}"
    reader = f"{module}:{module.rpartition('.')[2]}"
    return Layout(reader, kind, names, recognize=f"{module}:find", holds_out=True)


def image_folder(rows: str) -> Layout:
    """Return the layout of an image folder whose metadata have a kind of rows."""
    module = "fiber.data.formats.folders.image_folder"
    return Layout(
        f"{module}:image_folder_{rows}",
        "an image folder with metadata",
        ("metadata.jsonl", "metadata.csv"),
        recognize=f"{module}:find_{rows}",
        holds_out=True,
    )
