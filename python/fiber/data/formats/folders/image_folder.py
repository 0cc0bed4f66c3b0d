"""Images with texts or boxes in a metadata file, as in ImageFolder of Hugging Face's datasets.

    train/metadata.jsonl   train/1.jpg     a file for each split, also in `data`
    metadata.jsonl         train/1.jpg     one file; the folder of an image is its split
    metadata.jsonl         1.jpg           without splits

A line of `metadata.jsonl`, or a row of `metadata.csv`, names an image in `file_name`, relative to
the file. Other fields are those of tables (see `rows`), such as `text` or `objects`. Classes given
by numbers are named by `classes.json` next to the file, or in the folder above, a list of names.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fiber.data.formats.annotation_file import EntryFile, is_file
from fiber.data.formats.folders.rows import (
    CLASSES,
    SPLIT_NAMES,
    BoxFiles,
    class_list,
    first_folder,
)
from fiber.data.formats.json_values import parse_json, surrogate_problem
from fiber.data.formats.row_records import (
    DataRow,
    RowRecords,
    box_records,
    caption_records,
    question_records,
)
from fiber.data.formats.rows import FIELDS, kinds_in
from fiber.data.record import AnyPath
from fiber.messages import printable, shown, shown_names

#: Names of metadata files.
METADATA = ("metadata.jsonl", "metadata.csv")
#: Field with the name of the image.
_IMAGE = "file_name"
#: Number of lines, and of bytes, in which fields are looked for.
_LINES_READ, _BYTES_READ = 100, 1 << 20


def find_captions(path: Path) -> dict[str, Path]:
    """Return the splits of an image folder with texts, each with its metadata file, or {}."""
    return _find(path, "captions")


def find_questions(path: Path) -> dict[str, Path]:
    """Return the splits of an image folder with questions, each with its metadata file, or {}."""
    return _find(path, "questions")


def find_boxes(path: Path) -> dict[str, Path]:
    """Return the splits of an image folder with boxes, each with its metadata file, or {}."""
    return _find(path, "boxes")


def image_folder_captions(folder: AnyPath, split: str, *, annotations: AnyPath) -> RowRecords:
    """Read the texts of a split; see `caption_records`.

    `annotations` is the metadata file.

    Raises:
        FileNotFoundError: if the file or its first image is missing.
        ValueError: if a line is invalid; the error names the file and line.
    """
    return caption_records(_MetadataRows(Path(annotations), split))


def image_folder_questions(folder: AnyPath, split: str, *, annotations: AnyPath) -> RowRecords:
    """Read the questions of a split; see `image_folder_captions` and `question_records`."""
    return question_records(_MetadataRows(Path(annotations), split))


def image_folder_boxes(
    folder: AnyPath, split: str, *, annotations: AnyPath, on_error: str = "raise", **options: Any
) -> RowRecords:
    """Read the boxes of a split; see `image_folder_captions` and `box_records`."""
    rows = _MetadataRows(Path(annotations), split, on_error)
    return box_records(rows, on_error=on_error, **options)


def metadata_in(folder: Path) -> Path | None:
    """Return the metadata file in a folder, or None."""
    return next((folder / name for name in METADATA if is_file(folder / name)), None)


def fields_of(path: Path) -> list[str]:
    """Return the fields of the first lines of a metadata file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is invalid.
    """
    found: dict[str, None] = {}
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return next(csv.reader([file.readline(_BYTES_READ)]), [])
    for entry in islice(_Metadata(path).entries(_BYTES_READ), _LINES_READ):
        found.update(dict.fromkeys(entry))
    return list(found)


def _find(path: Path, kind: str) -> dict[str, Path]:
    if path.is_file():
        if path.name not in METADATA or not _has(path, kind):
            return {}
        own = [split for split, names in SPLIT_NAMES.items() if path.parent.name in names]
        return dict.fromkeys(own or _split_folders(path.parent) or ("train",), path)
    for root in (path, path / "data"):
        file = metadata_in(root)
        if file is not None:
            found = dict.fromkeys(_split_folders(root) or ("train",), file)
        else:
            folders = _split_folders(root)
            files = {split: metadata_in(folder) for split, folder in folders.items()}
            found = {split: own for split, own in files.items() if own is not None}
        found = {split: file for split, file in found.items() if _has(file, kind)}
        if found:
            return found
    return {}


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of splits, by the names of the splits."""
    folders = {s: first_folder(root / n for n in names) for s, names in SPLIT_NAMES.items()}
    return {split: folder for split, folder in folders.items() if folder is not None}


def _has(path: Path, kind: str) -> bool:
    """Return whether a metadata file has a kind of rows, or is so broken that it may have any."""
    try:
        fields = fields_of(path)
    except (OSError, ValueError):
        # Opening reports the error.
        return kind != "questions"
    return _IMAGE in fields and kind in kinds_in(fields)


class _Metadata(EntryFile):
    """Lines of a metadata file. Errors name the file and line."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._number = 0

    @property
    def where(self) -> str:
        """The file and the current line, for messages."""
        return f"{self.path}: line {self._number}"

    def entries(self, max_bytes: int = -1) -> Iterator[dict[str, Any]]:
        """Yield the object of each nonblank line, or of those in the first `max_bytes`."""
        with self.path.open("rb") as file:
            content = file.read(max_bytes)
            if 0 < max_bytes == len(content):
                content += file.readline()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as problem:
            raise ValueError(f"{self.path} is not UTF-8 text: {problem}") from None
        yield from self._cells(text) if self.path.suffix == ".csv" else self._objects(text)

    def _objects(self, text: str) -> Iterator[dict[str, Any]]:
        # Not `splitlines`: JSON strings may contain Unicode line separators.
        for self._number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                entry = parse_json(line, self, dict)
                if (problem := surrogate_problem(entry)) is not None:
                    raise self.error(problem)
                yield entry

    def _cells(self, text: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a table as objects, without empty cells."""
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            fields = next(reader, [])
            for cells in filter(None, reader):
                self._number = reader.line_num
                if len(cells) > len(fields):
                    raise self.error(
                        f"has {len(cells):,} cells, but there are {len(fields)} fields"
                    )
                yield {name: cell for name, cell in zip(fields, cells, strict=False) if cell}
        except csv.Error as problem:
            self._number = reader.line_num
            raise self.error(f"is not a valid CSV row ({problem})") from None


class _MetadataRows(BoxFiles):
    """Rows of a split of a metadata file."""

    class_names_hint = f", or {CLASSES} next to the metadata, a list of the names"

    def __init__(self, path: Path, split: str, on_error: str = "raise") -> None:
        super().__init__(on_error)
        self._file = _Metadata(path)
        self._names = class_list(path.parent, path.parent.parent)
        # In one file for all splits, names of images begin with the folder of the split.
        own = path.parent.name in SPLIT_NAMES.get(split, ())
        folders = {} if own else _split_folders(path.parent)
        self._folder = folders[split].name if split in folders else None
        self._found = False

    @property
    def class_names(self) -> list[str]:
        """Class names, by index."""
        return self._names

    def boxes(self) -> Iterator[DataRow]:
        """Yield a row for each image."""
        yield from self.rows("boxes")

    def rows(self, kind: str) -> Iterator[DataRow]:
        """Yield the rows of a kind; see `RowSource`."""
        file, (required, optional) = self._file, FIELDS[kind]
        names = {*required, *optional, "image_id", "width", "height"}
        for number, entry in enumerate(file.entries()):
            name = file.file_name(entry, _IMAGE)
            if self._folder is not None and name.partition("/")[0] != self._folder:
                continue
            if not any(field in entry for field in required):
                self.skip(f"images without {kind}")
                continue
            image = str(self._image(name))
            values = {field: value for field, value in entry.items() if field in names}
            values.setdefault("image_id", image)
            yield DataRow(file.where, f"{file.path.parent.name}/{number}", values, (image,))

    def _image(self, name: str) -> Path:
        """Return the path of an image. The first one must exist."""
        path = self._file.path.parent / name
        if not self._found and not is_file(path):
            raise FileNotFoundError(
                f"{self._file.where}: image {shown(name)} not found; tried"
                f" {printable(str(path), 500)}"
            )
        self._found = True
        return path


def nearly(folder: Path) -> str | None:
    """Describe the one thing that an image folder lacks, or return None."""
    for root in (folder, folder / "data"):
        for own in (root, *_split_folders(root).values()):
            path = metadata_in(own)
            if path is None:
                continue
            try:
                fields = fields_of(path)
            except (OSError, ValueError):
                return None
            missing = f"a field {_IMAGE!r}" if _IMAGE not in fields else ""
            if not missing and not kinds_in(fields):
                missing = "texts (a field 'text') or boxes ('objects')"
            if missing:
                return (
                    f"{path} looks like the metadata of an image folder, of which one thing is"
                    f" missing: {missing}; its fields are {shown_names(fields)}"
                )
    return None
