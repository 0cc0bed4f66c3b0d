"""Lines of a user's own annotation file: JSON Lines, a JSON list, or CSV.

Each line is an object with known fields, which `jsonl` converts to a record. Errors name the file
and line.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.atomic_io import check_regular_file
from fiber.config_io import nearest
from fiber.data.formats.annotation_file import EntryFile, is_file
from fiber.data.formats.json_values import find_surrogate, may_have_surrogates, parse_json
from fiber.data.record import AnyPath
from fiber.messages import printable, shown, shown_names

_FIELDS = (
    *("image", "text", "texts", "question", "answer", "answers", "id", "split"),
    *("boxes_xyxy", "labels", "width", "height"),
)
# Content of a file by its extension, for messages.
_EXPECTED = {
    ".jsonl": "one JSON object per line",
    ".json": "a list of JSON objects",
    ".csv": "a comma-separated UTF-8 table with field names in the first line and one text or"
    " answer per line",
}
# List fields, which CSV does not support, with their alternatives.
_LISTS = {
    "texts": "'text', one per line",
    "answers": "'answer', one per line",
    "boxes_xyxy": "a .jsonl or .json file",
    "labels": "a .jsonl or .json file",
}
# Maximum number of characters of an unknown field that are compared with known ones, and of a path
# in a message.
_MAX_FIELD, _MAX_PATH = 60, 500
# Field names of other formats that `nearest` would not match.
_OTHER_NAMES = {
    "image": ("img", "image_path", "img_path", "file_name", "filename", "file", "path", "picture"),
    "images": ("pictures",),
    "text": ("caption", "sentence"),
    "texts": ("captions", "sentences"),
    "boxes_xyxy": ("boxes", "bbox", "bboxes"),
    "labels": ("classes",),
}
#: Names that columns have, in this format and in others.
COLUMN_NAMES = frozenset({*_FIELDS, *itertools.chain(*_OTHER_NAMES.values())})
# Separators of other tables, and the maximum length of a first line that is searched for them.
_OTHER_SEPARATORS, _MAX_HEADER = (";", "\t", "|"), 1000


class LineReader(EntryFile):
    """Read a file line by line, in the format given by its extension.

    Image names are relative to `images` or, by default, to the file's folder or its "images"
    subfolder. `expected` describes the format in messages.
    """

    def __init__(self, path: Path, images: AnyPath | None) -> None:
        super().__init__(path)
        folder = path.parent
        self._roots = [folder, folder / "images"] if images is None else [Path(images)]
        self._number, self._has_surrogates = 0, False
        self._found: dict[str, str] = {}
        self._suffix = path.suffix.lower()
        self.expected = _EXPECTED.get(self._suffix, _EXPECTED[".jsonl"])

    @property
    def where(self) -> str:
        """The file and the current line, for messages."""
        return f"{self.path}: {'entry' if self._suffix == '.json' else 'line'} {self._number}"

    def walk(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the one-based number and the validated object of each nonblank line."""
        for number, entry in self.entries():
            self._number = number
            if not isinstance(entry, dict):
                hint = "; save a file with one JSON list as .json" * isinstance(entry, list)
                raise self.error(f"must be a JSON object, got {shown(entry)}{hint}")
            for field in entry:
                if field not in _FIELDS:
                    raise self.error(f"has unknown field {shown(field)}; {_hint(field)}")
            for field, value in entry.items() if self._has_surrogates else ():
                if (found := find_surrogate(value)) is not None:
                    raise self.error(
                        f"has a lone surrogate in {field!r}, which UTF-8 cannot encode:"
                        f" {shown(found)}"
                    )
            yield number, entry

    def entries(self) -> Iterator[tuple[int, Any]]:
        """Yield the one-based number and the value of each line or list item."""
        try:
            check_regular_file(self.path)
            # Files from Windows may begin with a byte order mark.
            text = self.path.read_text(encoding="utf-8-sig")
        except (FileNotFoundError, NotADirectoryError):
            example = "" if self._suffix == ".csv" else ': {"image": "1.jpg", "text": "a dog"}'
            message = f"{self.path} does not exist; expected {self.expected}{example}"
            raise FileNotFoundError(message) from None
        except UnicodeDecodeError as problem:
            message = f"{self.path} is not UTF-8 text ({problem}); expected {self.expected}"
            raise ValueError(message) from None
        self._has_surrogates = self._suffix != ".csv" and may_have_surrogates(text)
        if self._suffix == ".csv":
            yield from self._cells(text)
        elif self._suffix == ".json":
            yield from enumerate(parse_json(text, self.path, list), 1)
        else:
            # Not `splitlines`: JSON strings may contain Unicode line separators.
            for number, line in enumerate(text.split("\n"), 1):
                self._number = number
                if line.strip():
                    yield number, parse_json(line, self)

    def _cells(self, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the rows of a CSV table as objects, omitting empty cells."""
        self._check_separator(text[:_MAX_HEADER].lstrip().partition("\n")[0])
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            # As `csv.DictReader`, which skips empty lines, but takes time for all columns per row.
            rows = filter(None, reader)
            fields = next(rows, [])
            self._number = reader.line_num
            self._check_columns(fields)
            for cells in rows:
                self._number = reader.line_num
                if len(cells) > len(fields):
                    raise self.error(
                        f"has {len(cells):,} cells, but there are {len(fields)} columns"
                        f" ({shown_names(fields)})"
                    )
                pairs = zip(fields, cells, strict=False)
                yield reader.line_num, {name: cell for name, cell in pairs if cell}
        except csv.Error as problem:
            self._number = reader.line_num
            raise self.error(f"is not a valid CSV row ({problem})") from None

    def _check_separator(self, header: str) -> None:
        """Check that a first line does not separate names of columns by something else."""
        for separator in _OTHER_SEPARATORS:
            names = [name.strip(" \r\"'").lower() for name in header.split(separator)]
            if "," not in header and len(names) > 1 and not COLUMN_NAMES.isdisjoint(names):
                self._number = 1
                raise self.error(
                    f"separates columns by {separator!r}; expected commas (pandas: to_csv(FILE,"
                    " index=False))"
                )

    def _check_columns(self, fields: list[str]) -> None:
        """Check the names of CSV columns, of which all are known and none is a list."""
        if len(fields) > 1 and COLUMN_NAMES.isdisjoint(field.lower() for field in fields):
            raise self.error(
                f"must have the names of the columns, such as image,text; got {shown_names(fields)}"
            )
        seen = set()
        for field in fields:
            if field in seen:
                raise self.error(f"has a duplicate column {shown(field)}")
            if field in _LISTS:
                raise self.error(
                    f"has list field {field!r}, which CSV does not support; use {_LISTS[field]}"
                )
            if field not in _FIELDS:
                raise self.error(f"has unknown field {shown(field)}; {_hint(field)}")
            seen.add(field)

    def image(self, entry: dict[str, Any]) -> str:
        """Return the image path of a line.

        The first image must exist, since the folder is probably wrong otherwise. Other images may
        be missing: the loader raises an error or skips them.
        """
        name = self.file_name(entry, "image")
        if name not in self._found:
            paths = [root / name for root in self._roots]
            path = next((path for path in paths if is_file(path)), None)
            if path is None and not self._found:
                tried = " and ".join(printable(str(p), _MAX_PATH) for p in dict.fromkeys(paths))
                raise FileNotFoundError(
                    f"{self.where}: image {shown(name)} not found; tried {tried}; expected a path"
                    f" relative to the folder of {printable(self.path.name, _MAX_PATH)}"
                )
            self._found[name] = str(path or paths[0])
        return self._found[name]


def _hint(field: str) -> str:
    """Return a hint for an unknown field."""
    if not field:
        return "expected a name (pandas: to_csv(FILE, index=False))"
    names = (name for name, own in _OTHER_NAMES.items() if field.lower() in own)
    meant = next(names, None)
    return f"did you mean {meant!r}?" if meant else nearest(field[:_MAX_FIELD], _FIELDS)


def is_list(path: Path) -> bool:
    """Return whether a .json file contains a list."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            while start := file.read(64):
                if start.strip():
                    return start.lstrip().startswith("[")
    except (OSError, UnicodeDecodeError):
        pass  # The reader will report the error.
    return False
