"""Lines of a user's own file, whatever it is: JSON lines, a JSON list, or a table with commas.

Each is an object with known fields; what it says is for `own_data` to read. Errors name file and
line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from fiber.atomic_io import JSON_ERRORS
from fiber.config_io import nearest

AnyPath = str | PathLike[str]

_FIELDS = (
    *("image", "text", "texts", "question", "answer", "answers", "id", "split"),
    *("boxes_xyxy", "labels", "width", "height"),
)
# What a file holds, by the end of its name.
_EXPECTED = {
    ".jsonl": "one JSON object a line",
    ".json": "a list of JSON objects",
    ".csv": "a table in UTF-8 with commas, the names of its fields in the first line and one text"
    " or answer on each other",
}
# Fields that a cell of a table cannot hold, and what it holds instead.
_LISTS = {
    "texts": "'text', one a line",
    "answers": "'answer', one a line",
    "boxes_xyxy": "a .jsonl or .json file",
    "labels": "a .jsonl or .json file",
}
# What other formats call a field, though its name looks like none of ours or like another one.
_OTHER_NAMES = {
    "caption": "text",
    "captions": "texts",
    "sentence": "text",
    "sentences": "texts",
    "img": "image",
    "image_path": "image",
    "img_path": "image",
    "file_name": "image",
    "filename": "image",
    "path": "image",
    "picture": "image",
    "pictures": "images",
    "boxes": "boxes_xyxy",
    "bbox": "boxes_xyxy",
    "bboxes": "boxes_xyxy",
    "classes": "labels",
}


# Escapes of JSON that may be halves of surrogate pairs, which no text can be written with.
_MAYBE_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class OwnLines:
    """A file of lines, and the line that is being read.

    Args:
        path: the file; the end of its name says what it holds.
        images: where names of pictures start; default: the file's folder, or "images" there.

    Attributes:
        expected: what a file of this name holds, for messages.
    """

    def __init__(self, path: Path, images: AnyPath | None) -> None:
        self.path = path
        folder = path.parent
        self._roots = [folder, folder / "images"] if images is None else [Path(images)]
        self._number = 0
        self._what = "line"
        self._may_have_halves = False
        self._found: dict[str, str] = {}
        self.expected = _EXPECTED.get(path.suffix.lower(), _EXPECTED[".jsonl"])

    @property
    def where(self) -> str:
        """The line that is being read, in words."""
        return f"{self.path}: {self._what} {self._number}"

    def error(self, problem: str) -> ValueError:
        """Return an error that names the line."""
        return ValueError(f"{self.where} {problem}")

    def walk(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number of each line that is not blank, from 1, with its checked object."""
        for number, entry in self.entries():
            self._number = number
            if not isinstance(entry, dict):
                raise self.error(f"is {str(entry)[:40]!r}; expected an object")
            for field in entry:
                if field not in _FIELDS:
                    meant = _OTHER_NAMES.get(field.lower())
                    said = f"did you mean {meant!r}?" if meant else nearest(field, _FIELDS)
                    raise self.error(f"has the unknown field {field!r}; {said}")
            if self._may_have_halves:
                self._refuse_halves(entry)
            yield number, entry

    def entries(self) -> Iterator[tuple[int, Any]]:
        """Yield what stands on each line, or in each place of a list, with its number from 1."""
        text = self._read()
        self._may_have_halves = _MAYBE_HALF.search(text) is not None
        if self.path.suffix.lower() == ".json":
            self._what = "entry"
            yield from enumerate(self._list(text), 1)
            return
        if self.path.suffix.lower() == ".csv":
            yield from self._cells(text)
            return
        # Only line feeds end lines: JSON strings may hold Unicode's other line separators.
        for number, line in enumerate(text.split("\n"), 1):
            self._number = number
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except JSON_ERRORS as problem:
                raise self.error(f"is not JSON ({problem})") from None

    def _refuse_halves(self, entry: dict[str, Any]) -> None:
        for field, value in entry.items():
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise self.error(
                    f"has half a surrogate pair in {field!r}, {json.dumps(value):.60}; expected"
                    " whole characters"
                ) from None

    def _list(self, text: str) -> list[Any]:
        try:
            found = json.loads(text)
        except JSON_ERRORS as problem:
            raise ValueError(f"{self.path} is not JSON ({problem})") from None
        if not isinstance(found, list):
            raise ValueError(f"{self.path} holds a {type(found).__name__}; expected a list")
        return found

    def _cells(self, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the lines of a table by the names in its first line; empty cells are not there."""
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            fields = reader.fieldnames or ()
            for place, field in enumerate(fields):
                self._number = 1
                if field in fields[:place]:
                    raise self.error(f"names the column {field!r} twice; expected each once")
                if field in _LISTS:
                    raise self.error(
                        f"has the field {field!r}; expected {_LISTS[field]}, since a cell holds"
                        " no list"
                    )
            for cells in reader:
                self._number = reader.line_num
                if None in cells:
                    raise self.error(
                        f"has more cells than the first line, which names"
                        f" {', '.join(map(repr, reader.fieldnames or ()))}"
                    )
                yield reader.line_num, {name: cell for name, cell in cells.items() if cell}
        except csv.Error as problem:
            # That of the dictionary is the line of the last whole row.
            self._number = reader.reader.line_num
            raise self.error(f"is no line of a table ({problem})") from None

    def text(self, entry: dict[str, Any], field: str) -> str:
        """Return a needed text that is not empty."""
        if field not in entry:
            raise self.error(f"has no {field!r}")
        return self.checked_text(entry[field], field)

    def checked_text(self, value: Any, field: str) -> str:
        """Return the value of a field if it is a text that is not empty."""
        if not isinstance(value, str):
            raise self.error(f"has {field!r} {str(value)[:40]!r}; expected a text")
        if not value.strip():
            raise self.error(f"has an empty {field!r}")
        return value

    def picture(self, entry: dict[str, Any]) -> str:
        """Return the path of the line's picture.

        The first one must exist, or all would be looked for in the wrong place; a later one that
        is missing is for who loads it to raise, or to skip and count.
        """
        name = self.text(entry, "image")
        if name not in self._found:
            places = [root / name for root in self._roots]
            path = next((place for place in places if place.is_file()), None)
            if path is None and not self._found:
                looked = " or ".join(dict.fromkeys(map(str, places)))
                raise FileNotFoundError(
                    f"{self.where} has 'image' {name!r}, but {looked} is no file"
                )
            self._found[name] = str(path or places[0])
        return self._found[name]

    def _read(self) -> str:
        try:
            # A file from Windows may begin with a mark of its encoding.
            return self.path.read_text(encoding="utf-8-sig")
        except (FileNotFoundError, NotADirectoryError):
            such = ', such as {"image": "1.jpg", "text": "a dog"}'
            raise FileNotFoundError(
                f"{self.path} does not exist; expected {self.expected}"
                f"{'' if self.path.suffix.lower() == '.csv' else such}"
            ) from None
        except UnicodeDecodeError as problem:
            raise ValueError(
                f"{self.path} is not text ({problem}); expected {self.expected}"
            ) from None


def is_list(path: Path) -> bool:
    """Tell whether a .json file holds a list, as a user's own may."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            while start := file.read(64):
                if start.strip():
                    return start.lstrip().startswith("[")
    except (OSError, UnicodeDecodeError):
        # Its reader says what is wrong.
        pass
    return False
