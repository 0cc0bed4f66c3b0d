"""Rows of the table of sources, and their files. Imports no reader, as the table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


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
