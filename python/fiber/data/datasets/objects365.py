"""Objects365 boxes in the TSV files that GLIP and FIBER read."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fiber.atomic_io import JSON_ERRORS
from fiber.data.formats.annotation_boxes import EMPTY_BOX_PIXELS, is_number
from fiber.data.formats.annotation_file import read_text
from fiber.data.formats.tsv import KIND, TsvFile
from fiber.data.prompts.classes import class_prompt
from fiber.data.record import AnyPath, LazyImages, Record, RecordSequence

_NEEDED = ("img", "label", "labelmap")


def objects365(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    on_error: str = "raise",
) -> TsvRecords:
    """Read boxes of classes from TSV files: one record per entry of the line list.

    Boxes are clipped to their images; crowds, empty and reversed boxes are dropped. All of this is
    counted while records are read. A `rect` is half-open.

    Args:
        folder: data folder.
        split: "train"; the published files have no other.
        annotations: the YAML file; default: the first match of `FILES` in the folder.
        on_error: "raise", or "skip": drop and count invalid objects.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is invalid, with its name.
    """
    if annotations is None:
        found = [path for name in FILES for path in sorted(Path(folder).glob(name))]
        if not found:
            raise FileNotFoundError(f"{folder} has no {' or '.join(FILES)}")
        annotations = found[0]
    return TsvRecords(Path(annotations), on_error=on_error)


def _read_yaml(path: Path) -> dict[str, str]:
    """Read a flat list of `name: value`, the only YAML that these files use."""
    found = {}
    for line in read_text(path, KIND).splitlines():
        name, colon, value = line.partition(":")
        value = value.partition(" #")[0].strip().strip("'\"")
        if colon and value and not line.lstrip().startswith("#"):
            found[name.strip()] = value
    missing = [name for name in _NEEDED if name not in found]
    if missing:
        raise ValueError(
            f"{path} names no {', '.join(missing)}; expected img, label, labelmap and optionally"
            f" hw and linelist; it has {', '.join(found) or 'nothing'}"
        )
    return found


def _read_labelmap(path: Path) -> list[str]:
    """Return the class names in order of their numbers."""
    text = read_text(path, KIND)
    try:
        content = json.loads(text)
    except JSON_ERRORS as problem:
        raise ValueError(f"{path} is not JSON ({problem}); expected class names") from None
    numbers = content.get("label_to_idx", content) if isinstance(content, Mapping) else None
    if not isinstance(numbers, Mapping) or not all(type(n) is int for n in numbers.values()):
        raise ValueError(f'{path}: expected the number of each class, {{"mug": 1}}')
    # Added by the published code; not a class.
    return sorted((name for name in numbers if name != "__background__"), key=numbers.__getitem__)


#: Names of the YAML file in a data folder; the first match is used.
FILES = ("objects365_train*.yaml", "Objects365/objects365_train*.yaml", "*.yaml")


class TsvRecords(RecordSequence):
    """Records that are made on access.

    Args:
        annotations: the YAML file.
        on_error: see `objects365`.
    """

    #: Counts grow while records are read; records read twice count twice.
    counts_while_reading = True

    def __init__(self, annotations: Path, *, on_error: str = "raise") -> None:
        files = _read_yaml(annotations)
        self._name = annotations.stem
        self._images = TsvFile(annotations.parent / files["img"])
        self._labels = TsvFile(annotations.parent / files["label"])
        self._sizes = TsvFile(annotations.parent / files["hw"]) if "hw" in files else None
        for other in filter(None, (self._labels, self._sizes)):
            if len(other) != len(self._images):
                raise ValueError(
                    f"{other.path} has {len(other)} lines, {self._images.path}"
                    f" {len(self._images)}; expected one line for each image"
                )
        names = _read_labelmap(annotations.parent / files["labelmap"])
        #: Class names, by id.
        self.classes = tuple(names)
        self._label_index = {name: index for index, name in enumerate(names)}
        self._lines: Sequence[int] | np.ndarray = range(len(self._images))
        if "linelist" in files:
            self._lines = _read_lines(annotations.parent / files["linelist"], len(self._images))
        self._prompt = class_prompt(self.classes)
        self._skips_errors = on_error == "skip"
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._lines)

    def _record(self, index: int) -> Record:
        """Read a record.

        Raises:
            ValueError: for an invalid label, with file and line; for an invalid image on access to
                it.
        """
        line = int(self._lines[index])
        size = self._size(line)
        boxes, labels = self._boxes(line, size)
        prompt = self._prompt
        key = f"{self._name}/{line}"
        return Record(
            key=key,
            images=LazyImages(self._image, (line,)),
            image_id=key,
            image_size=None if math.isinf(size[0]) else (int(size[0]), int(size[1])),
            text=prompt.text,
            boxes_xyxy=tuple(boxes),
            char_spans=tuple(prompt.spans[label] for label in labels),
            box_labels=tuple(labels),
            labels=prompt.labels,
            label_spans=prompt.spans,
        )

    def _boxes(
        self, line: int, size: tuple[float, float]
    ) -> tuple[list[tuple[float, float, float, float]], list[int]]:
        """Return boxes (half-open, pixels) and their class indices."""
        row = self._labels.row(line)
        where = f"{self._labels.path}: line {line + 1}"
        objects = _json_column(row, where)
        if isinstance(objects, dict):
            objects = objects.get("objects")
        if not isinstance(objects, list):
            raise ValueError(f"{where} has no list of objects, but {str(objects)[:60]}")
        boxes, own = [], []
        for number, entry in enumerate(objects):
            problem = None
            rect = entry.get("rect") if isinstance(entry, dict) else None
            if not isinstance(rect, list) or len(rect) != 4 or not all(map(is_number, rect)):
                problem = f"has 'rect' {str(rect)[:60]}; expected [x0, y0, x1, y1] in pixels"
            elif entry.get("class") not in self._label_index:
                problem = f"has class {str(entry.get('class'))[:60]!r}, not in the labelmap"
            if problem:
                if not self._skips_errors:
                    raise ValueError(f"{where}: object {number} {problem}")
                self.counts["objects that are no boxes of a class"] += 1
                continue
            x0, y0, x1, y1 = map(float, rect)  # type: ignore[arg-type]
            if entry.get("iscrowd"):
                self.counts["crowd boxes"] += 1
                continue
            # The published code clips and drops these without an error, like empty boxes.
            if x1 < x0 or y1 < y0:
                self.counts["reversed boxes"] += 1
                continue
            box = (max(x0, 0.0), max(y0, 0.0), min(x1, size[1]), min(y1, size[0]))
            if box[2] - box[0] <= EMPTY_BOX_PIXELS or box[3] - box[1] <= EMPTY_BOX_PIXELS:
                self.counts["empty boxes"] += 1
                continue
            self.counts["clipped boxes"] += box != (x0, y0, x1, y1)
            boxes.append(box)
            own.append(self._label_index[entry["class"]])
        return boxes, own

    def _size(self, line: int) -> tuple[float, float]:
        """Return (height, width) in pixels; infinite without a file of sizes."""
        if self._sizes is None:
            return math.inf, math.inf
        where = f"{self._sizes.path}: line {line + 1}"
        found = _json_column(self._sizes.row(line), where)
        found = found[0] if isinstance(found, list) and found else found
        values = [found.get(key) if isinstance(found, dict) else None for key in _SIDES]
        if not all(map(is_number, values)):
            raise ValueError(f"{where} holds {str(found)[:60]}; expected height and width")
        return float(values[0]), float(values[1])  # type: ignore[arg-type]

    def _image(self, line: int) -> bytes:
        """Return the content of an image file."""
        try:
            return base64.b64decode(self._images.row(line)[-1], validate=True)
        except binascii.Error as problem:
            raise ValueError(
                f"{self._images.path}: line {line + 1}: the last column is not base64 ({problem})"
            ) from None


_SIDES = ("height", "width")


def _json_column(row: list[str], where: str) -> Any:
    try:
        return json.loads(row[1])
    except (IndexError, *JSON_ERRORS) as problem:
        raise ValueError(f"{where} has no JSON in its second column ({problem})") from None


def _read_lines(path: Path, count: int) -> np.ndarray:
    try:
        lines = np.array(read_text(path, KIND).split(), dtype=np.int64)
    except (ValueError, OverflowError):
        raise ValueError(f"{path}: expected one line number per line") from None
    if len(lines) and (lines.min() < 0 or lines.max() >= count):
        wrong = int(lines[(lines < 0) | (lines >= count)][0])
        raise ValueError(f"{path} has line number {wrong}; expected 0 to {count - 1}")
    return lines
