"""Objects365 boxes in the TSV format used by GLIP and FIBER."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fiber.data.formats.annotation_boxes import EMPTY_BOX_PIXELS, Box, clip_box
from fiber.data.formats.annotation_file import named, read_json, read_text
from fiber.data.formats.json_values import file_name_problem, is_number, parse_json
from fiber.data.formats.tsv import KIND, TsvFile, read_integers
from fiber.data.formats.unsupported import yolo_problem
from fiber.data.prompts.classes import class_prompt
from fiber.data.record import MAX_SIDE, AnyPath, LazyImages, Record, RecordSequence
from fiber.messages import shown, shown_names

_NEEDED = ("img", "label", "labelmap")
#: Number of times that a line list may list the bytes of a file.
MAX_REPEATS = 100


def is_description(path: Path) -> bool:
    """Return whether a YAML file names the files of such a dataset, and is no other YAML file."""
    try:
        return _values(path).keys() >= set(_NEEDED)
    except (ValueError, OSError):
        # Opening reports the error.
        return True


def _values(path: Path) -> dict[str, str]:
    """Read lines of `name: value`, the only YAML syntax in these files."""
    found = {}
    for line in read_text(path, KIND).splitlines():
        name, colon, value = line.partition(":")
        value = value.partition(" #")[0].strip().strip("'\"")
        if colon and value and not line.lstrip().startswith("#"):
            found[name.strip()] = value
    return found


def _read_yaml(path: Path) -> dict[str, str]:
    """Return the names of the files, by what they have."""
    found = _values(path)
    missing = [name for name in _NEEDED if name not in found]
    if missing and (problem := yolo_problem(path)) is not None:
        raise ValueError(problem)
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; expected img, label, labelmap and optionally hw"
            f" and linelist, got {shown_names(found)}"
        )
    for name, value in found.items():
        if name not in (*_NEEDED, "hw", "linelist"):
            continue
        if problem := file_name_problem(value):
            raise ValueError(f"{path} has {name} {problem}")
        if not value.isprintable():
            raise ValueError(f"{path} has {name} {shown(value)}; expected a printable file name")
    return found


def _read_labelmap(path: Path) -> list[str]:
    """Return the class names in order of their ids."""
    content = read_json(path, KIND).data
    numbers = content.get("label_to_idx", content)
    if not isinstance(numbers, Mapping) or not all(type(n) is int for n in numbers.values()):
        raise ValueError(
            f'{path} must map class names to integer ids, such as {{"mug": 1}}, got'
            f" {shown(numbers)}"
        )
    # "__background__" is added by the published code and is not a class.
    return sorted((name for name in numbers if name != "__background__"), key=numbers.__getitem__)


class Objects365Records(RecordSequence):
    """Boxes with classes from TSV files. Records are created on access.

    There is one record per entry of the line list, or per image if there is no line list. Boxes are
    clipped to their images, and crowd, empty and reversed boxes are dropped. Clipped and dropped
    boxes are counted as records are read. `rect` has half-open pixel coordinates.

    `annotations` is the YAML file; the only split is "train". If `on_error` is "skip", invalid
    objects are dropped and counted.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is invalid; on access, if a label or image is invalid (the error names
            the file and line).
    """

    #: Counts grow as records are read; a record that is read twice is counted twice.
    counts_while_reading = True

    def __init__(
        self, folder: AnyPath, split: str, *, annotations: AnyPath, on_error: str = "raise"
    ) -> None:
        annotations = Path(annotations)
        files = _read_yaml(annotations)
        self._name = annotations.stem
        self._images = TsvFile(annotations.parent / files["img"])
        self._labels = TsvFile(annotations.parent / files["label"])
        self._sizes = TsvFile(annotations.parent / files["hw"]) if "hw" in files else None
        for other in filter(None, (self._labels, self._sizes)):
            if len(other) != len(self._images):
                raise ValueError(
                    f"{other.path} has {len(other)} lines, but {self._images.path} has"
                    f" {len(self._images)}; expected one line per image"
                )
        names = _read_labelmap(annotations.parent / files["labelmap"])
        #: Class names, by index.
        self.classes = tuple(names)
        self._label_index = {name: index for index, name in enumerate(names)}
        self._lines: Sequence[int] | np.ndarray = range(len(self._images))
        if "linelist" in files:
            path, count = annotations.parent / files["linelist"], len(self._images)
            self._lines = lines = read_integers(path, "line numbers")
            wrong = lines[(lines < 0) | (lines >= count)]
            if len(wrong):
                raise ValueError(f"{path} has line number {wrong[0]}; expected 0 to {count - 1}")
            self._check_repeats(path, lines)
        with named(f"{annotations.parent / files['labelmap']}:"):
            self._prompt = class_prompt(self.classes)
        self._skips_errors = on_error == "skip"
        self.counts: Counter[str] = Counter()

    def _check_repeats(self, path: Path, lines: np.ndarray) -> None:
        """Check that a line list repeats lines a bounded number of times, on average.

        A line is parsed for each record, so that one long line that is listed many times would take
        time in proportion to the square of the size of the files.
        """
        for file in filter(None, (self._labels, self._sizes)):
            listed, most = file.line_bytes(lines), MAX_REPEATS * file.line_bytes()
            if listed > most:
                raise ValueError(
                    f"{path} lists lines of {file.path} that have {listed:,} bytes in all; expected"
                    f" at most {most:,}, {MAX_REPEATS} times the size of that file"
                )

    def __len__(self) -> int:
        return len(self._lines)

    def _record(self, index: int) -> Record:
        line = int(self._lines[index])
        size = self._size(line)
        boxes, labels = self._boxes(line, size)
        key = f"{self._name}/{line}"
        return Record(
            key=key,
            images=LazyImages(self._image, (line,)),
            image_id=key,
            image_size=None if math.isinf(size[0]) else (int(size[0]), int(size[1])),
            **self._prompt.record_fields(boxes, labels),
        )

    def _boxes(self, line: int, size: tuple[float, float]) -> tuple[list[Box], list[int]]:
        """Return boxes (half-open pixel coordinates) and their class indices."""
        objects, where = _second_column(self._labels, line)
        if isinstance(objects, dict):
            objects = objects.get("objects")
        if not isinstance(objects, list):
            raise ValueError(f"{where} must contain a list of objects, got {shown(objects)}")
        boxes, own = [], []
        for number, entry in enumerate(objects):
            problem = None
            rect = entry.get("rect") if isinstance(entry, dict) else None
            if not isinstance(rect, list) or len(rect) != 4 or not all(map(is_number, rect)):
                problem = f"has 'rect' {shown(rect)}; expected [x0, y0, x1, y1] in pixels"
            elif not isinstance(entry.get("class"), str) or (
                entry["class"] not in self._label_index
            ):
                problem = f"has class {shown(entry.get('class'))}, which is not in the labelmap"
            if problem:
                if not self._skips_errors:
                    raise ValueError(f"{where}: object {number} {problem}")
                self.counts["objects that are no boxes of a class"] += 1
                continue
            x0, y0, x1, y1 = map(float, rect)  # type: ignore[arg-type]
            (left, top, right, bottom), beyond = clip_box((x0, y0, x1, y1), size)
            if entry.get("iscrowd"):
                self.counts["crowd boxes"] += 1
            # The published code silently clips and drops these, as it does empty boxes.
            elif x1 < x0 or y1 < y0:
                self.counts["reversed boxes"] += 1
            elif min(right - left, bottom - top) <= EMPTY_BOX_PIXELS:
                self.counts["empty boxes"] += 1
            else:
                self.counts["clipped boxes"] += beyond > 0
                boxes.append((left, top, right, bottom))
                own.append(self._label_index[entry["class"]])
        return boxes, own

    def _size(self, line: int) -> tuple[float, float]:
        """Return (height, width) in pixels, or infinite values if there is no `hw` file."""
        if self._sizes is None:
            return math.inf, math.inf
        found, where = _second_column(self._sizes, line)
        found = found[0] if isinstance(found, list) and found else found
        sides = ("height", "width")
        values = [found.get(side) if isinstance(found, dict) else None for side in sides]
        if not all(is_number(side) and 1 <= side <= MAX_SIDE for side in values):
            raise ValueError(
                f"{where} must have 'height' and 'width' in pixels, from 1 to {MAX_SIDE:,}, got"
                f" {shown(found)}"
            )
        return float(values[0]), float(values[1])  # type: ignore[arg-type]

    def _image(self, line: int) -> bytes:
        """Return the encoded bytes of an image."""
        try:
            return base64.b64decode(self._images.row(line)[-1], validate=True)
        except ValueError as problem:
            raise ValueError(
                f"{self._images.path}: line {line + 1}: last column is not valid base64 ({problem})"
            ) from None


def _second_column(file: TsvFile, line: int) -> tuple[Any, str]:
    """Return the JSON value in the second column of a line, and its location for messages."""
    row, where = file.row(line), f"{file.path}: line {line + 1}"
    if len(row) < 2:
        raise ValueError(f"{where} has {len(row)} columns; expected 2 or more")
    return parse_json(row[1], f"{where}: the second column"), where
