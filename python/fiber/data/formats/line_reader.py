"""Lines of a user's own annotation file: JSON Lines, a JSON list, or CSV.

Each line is an object with known fields, which `jsonl` converts to a record. Errors name the file
and line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.atomic_io import JSON_ERRORS
from fiber.config_io import nearest
from fiber.data.formats.annotation_file import EntryFile
from fiber.data.record import AnyPath

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
# Field names of other formats that `nearest` would not match.
_OTHER_NAMES = {
    "image": ("img", "image_path", "img_path", "file_name", "filename", "path", "picture"),
    "images": ("pictures",),
    "text": ("caption", "sentence"),
    "texts": ("captions", "sentences"),
    "boxes_xyxy": ("boxes", "bbox", "bboxes"),
    "labels": ("classes",),
}

# JSON escapes that may be lone surrogates, which UTF-8 cannot encode.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


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
                raise self.error(f"must be a JSON object, got {entry!r:.40}")
            for field in entry:
                if field not in _FIELDS:
                    names = (name for name, own in _OTHER_NAMES.items() if field.lower() in own)
                    meant = next(names, None)
                    hint = f"did you mean {meant!r}?" if meant else nearest(field, _FIELDS)
                    raise self.error(f"has unknown field {field!r}; {hint}")
            for field, value in entry.items() if self._has_surrogates else ():
                try:
                    json.dumps(value, ensure_ascii=False).encode()
                except UnicodeEncodeError:
                    raise self.error(
                        f"has a lone surrogate in {field!r}, which UTF-8 cannot encode:"
                        f" {json.dumps(value):.60}"
                    ) from None
            yield number, entry

    def entries(self) -> Iterator[tuple[int, Any]]:
        """Yield the one-based number and the value of each line or list item."""
        try:
            # Files from Windows may begin with a byte order mark.
            text = self.path.read_text(encoding="utf-8-sig")
        except (FileNotFoundError, NotADirectoryError):
            example = "" if self._suffix == ".csv" else ': {"image": "1.jpg", "text": "a dog"}'
            message = f"{self.path} does not exist; expected {self.expected}{example}"
            raise FileNotFoundError(message) from None
        except UnicodeDecodeError as problem:
            message = f"{self.path} is not UTF-8 text ({problem}); expected {self.expected}"
            raise ValueError(message) from None
        self._has_surrogates = _SURROGATE.search(text) is not None
        if self._suffix == ".csv":
            yield from self._cells(text)
        elif self._suffix == ".json":
            try:
                found = json.loads(text)
            except JSON_ERRORS as problem:
                raise ValueError(f"{self.path} is not valid JSON ({problem})") from None
            if not isinstance(found, list):
                raise ValueError(f"{self.path} must contain a list, got {type(found).__name__}")
            yield from enumerate(found, 1)
        else:
            # Not `splitlines`: JSON strings may contain Unicode line separators.
            for number, line in enumerate(text.split("\n"), 1):
                self._number = number
                if not line.strip():
                    continue
                try:
                    yield number, json.loads(line)
                except JSON_ERRORS as problem:
                    raise self.error(f"is not valid JSON ({problem})") from None

    def _cells(self, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the rows of a CSV table as objects, omitting empty cells."""
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            self._number, fields = 1, reader.fieldnames or ()
            for place, field in enumerate(fields):
                if field in fields[:place]:
                    raise self.error(f"has a duplicate column {field!r}")
                if field in _LISTS:
                    raise self.error(
                        f"has list field {field!r}, which CSV does not support; use {_LISTS[field]}"
                    )
            for cells in reader:
                self._number = reader.line_num
                if None in cells:
                    names = ", ".join(map(repr, fields))
                    raise self.error(f"has more cells than the {len(fields)} columns ({names})")
                yield reader.line_num, {name: cell for name, cell in cells.items() if cell}
        except csv.Error as problem:
            # `DictReader.line_num` is the line of the last complete row.
            self._number = reader.reader.line_num
            raise self.error(f"is not a valid CSV row ({problem})") from None

    def image(self, entry: dict[str, Any]) -> str:
        """Return the image path of a line.

        The first image must exist, since the folder is probably wrong otherwise. Other images may
        be missing: the loader raises an error or skips them.
        """
        name = self.text(entry, "image")
        if name not in self._found:
            paths = [root / name for root in self._roots]
            path = next((path for path in paths if path.is_file()), None)
            if path is None and not self._found:
                tried = " and ".join(dict.fromkeys(map(str, paths)))
                raise FileNotFoundError(f"{self.where}: image {name!r} not found; tried {tried}")
            self._found[name] = str(path or paths[0])
        return self._found[name]


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
