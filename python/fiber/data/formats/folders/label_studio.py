"""Boxes of Label Studio: a JSON list of tasks, as its export "JSON" writes it.

    train.json, val.json        images/1.jpg     as `fiber data convert` writes
    project-1-at-2026.json      images/1.jpg     an export, and the images

A task names its image in `data`, and has the results of annotators. Boxes are in percent of the
size of the stored image. `classes.json` may list the names of all classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fiber.data.formats.annotation_boxes import Box
from fiber.data.formats.annotation_file import (
    AnnotationFile,
    is_file,
    read_json_array,
)
from fiber.data.formats.folders.rows import (
    SPLIT_NAMES,
    BoxFiles,
    class_list,
    files_in,
    tried,
)
from fiber.data.formats.json_values import file_name_problem, is_integer, is_number
from fiber.data.formats.row_records import DataRow, RowRecords, box_records
from fiber.data.image_file import ENDINGS
from fiber.data.prompts.classes import clean_class_name
from fiber.data.record import MAX_SIDE, AnyPath
from fiber.messages import shown

KIND = "tasks of Label Studio"
#: Number of bytes of a file in which its kind is looked for.
_START_BYTES = 1 << 16
_TASKS = re.compile(rb'\s*\[\s*\{.*"(?:annotations|predictions)"\s*:', re.DOTALL)
_DATA = re.compile(rb'"data"\s*:\s*\{')
#: Prefix of uploaded files.
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")
#: Kinds of results that mark regions, but are no boxes.
_REGIONS = {
    "polygonlabels": "a polygon",
    "brushlabels": "a mask",
    "keypointlabels": "a keypoint",
    "ellipselabels": "an ellipse",
}
_SIDES = ("x", "y", "width", "height")
#: Percentages are out of [0, 100] by at most this much, which rounding explains.
_SLACK = 1.0


def find(path: Path) -> dict[str, Path]:
    """Return the splits of a folder or a file of Label Studio, each with its file, or {}."""
    if path.is_file():
        return {"train": path} if path.suffix == ".json" and _is_tasks(path) else {}
    if not path.is_dir():
        return {}
    named = {
        split: path / f"{name}.json"
        for split, names in SPLIT_NAMES.items()
        for name in reversed(names)
        if is_file(path / f"{name}.json")
    }
    found = {split: file for split, file in named.items() if _is_tasks(file)}
    if found or named:
        return found
    others = [file for file in files_in(path, ".json") if _is_tasks(file)]
    return {"train": others[0]} if len(others) == 1 else {}


def _is_tasks(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
    except OSError:
        return False
    return _TASKS.match(start) is not None and _DATA.search(start) is not None


def label_studio(
    folder: AnyPath, split: str, *, annotations: AnyPath, on_error: str = "raise", **options: Any
) -> RowRecords:
    """Read the boxes of a split; see `box_records`.

    `annotations` is the file. The first annotation of a task that was not cancelled is read; tasks
    without one, such as those with predictions alone, are skipped and counted.

    Raises:
        FileNotFoundError: if the file or an image is missing.
        ValueError: if the file is invalid; the error names the task.
    """
    return box_records(
        _Tasks(Path(folder), Path(annotations), split, on_error), on_error=on_error, **options
    )


class _Tasks(BoxFiles):
    """Tasks of a file."""

    def __init__(self, folder: Path, path: Path, split: str, on_error: str) -> None:
        super().__init__(on_error)
        self._file = read_json_array(path, KIND)
        self._names = class_list(path.parent)
        self._folders = [path.parent, path.parent / "images", path.parent / "images" / split]

    @property
    def class_names(self) -> list[str]:
        """Names of `classes.json`, if there are any; those of boxes follow."""
        return self._names

    def boxes(self) -> Iterator[DataRow]:
        """Yield a row for each annotated task."""
        file, number = self._file, 0
        for index, task in file.numbered("entries"):
            results = self._results(task)
            if results is None:
                continue
            try:
                image = self._image(task)
                size = _size(file, results) or self._size_of(image)
            except (OSError, ValueError) as error:
                self.refuse(error, "tasks whose image cannot be read")
                continue
            values = {"width": size[1], "height": size[0], "image_id": str(image)}
            values |= self._objects(results, size)
            number += 1
            yield DataRow(file.where, f"{file.path.stem}/{index}", values, (str(image),))
        if not number and not self.skips_errors:
            raise ValueError(
                f"{file.path} has no annotated task; expected tasks with 'annotations' (predictions"
                " are not read)"
            )

    def _size_of(self, image: Path) -> tuple[int, int]:
        try:
            return self.size_of(image)
        except ValueError as problem:
            raise ValueError(f"{self._file.where}: {problem}") from None

    def _results(self, task: dict[str, Any]) -> list[dict[str, Any]] | None:
        """Return the results of the first annotation; None if there is none."""
        given = task.get("annotations")
        if given is not None and not isinstance(given, list):
            raise self._file.error(f"has 'annotations' {shown(given)}; expected a list")
        own = [each for each in given or () if isinstance(each, dict)]
        own = [each for each in own if not each.get("was_cancelled")]
        self.skip("tasks without annotations", int(not own))
        self.skip("further annotations of a task", max(0, len(own) - 1))
        return list(self._file.objects(own[0], "result")) if own else None

    def _objects(self, results: list[dict[str, Any]], size: tuple[int, int]) -> dict[str, Any]:
        boxes, labels = list[list[float]](), list[str]()
        for number, result in enumerate(results):
            kind = result.get("type")
            if kind != "rectanglelabels" and (not isinstance(kind, str) or kind not in _REGIONS):
                self.skip("results that mark no region")
                continue
            try:
                box, label = _object(result, size)
            except ValueError as problem:
                error = self._file.error(f"has result {number} that {problem}")
                self.refuse(error, "results that are no box")
                continue
            boxes.append(list(box))
            labels.append(label)
        return {"boxes_xyxy": boxes, "labels": labels}

    def _image(self, task: dict[str, Any]) -> Path:
        """Return the image of a task, by the name in its data."""
        data = self._file.get(task, "data", dict)
        texts = [value for value in (data.get("image"), *data.values()) if isinstance(value, str)]
        given = next((text for text in texts if text.lower().endswith(ENDINGS)), None)
        if given is None or file_name_problem(given) is not None:
            raise self._file.error(f"has 'data' {shown(data)}; expected the name of an image")
        name = unquote(given.partition("?d=")[2] or given)
        last = name.replace("\\", "/").rpartition("/")[2]
        names = dict.fromkeys((name.lstrip("/"), last, _UPLOAD.sub("", last)))
        paths = [folder / each for each in names for folder in self._folders]
        path = next((path for path in paths if is_file(path)), None)
        if path is None:
            raise FileNotFoundError(
                f"{self._file.where}: no image {shown(given)}; tried {tried(paths)}"
            )
        return path


def _size(file: AnnotationFile, results: list[dict[str, Any]]) -> tuple[int, int] | None:
    """Return the (height, width) in the results, or None if they have none."""
    for result in results:
        size = result.get("original_height"), result.get("original_width")
        if all(side is None for side in size):
            continue
        height, width = size
        if not is_integer(height, 1, MAX_SIDE) or not is_integer(width, 1, MAX_SIDE):
            raise file.error(
                f"has original_height {shown(height)} and original_width {shown(width)}; expected"
                f" pixels from 1 to {MAX_SIDE:,}"
            )
        return height, width
    return None


def _object(result: dict[str, Any], size: tuple[int, int]) -> tuple[Box, str]:
    """Return the box of a result, in pixels, and its class."""
    kind, value = result.get("type"), result.get("value")
    if kind in _REGIONS:
        raise ValueError(f"is {_REGIONS[str(kind)]} ({kind}); expected a box (rectanglelabels)")
    if not isinstance(value, dict):
        raise ValueError(f"has 'value' {shown(value)}; expected {', '.join(_SIDES)}")
    turned = [each for each in (value.get("rotation"), result.get("image_rotation")) if each]
    if turned:
        raise ValueError(f"is turned by {shown(turned[0])} degrees; expected a box that is upright")
    names = value.get("rectanglelabels")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ValueError(f"has labels {shown(names)}; expected a list of one name")
    if not clean_class_name(names[0]).strip():
        raise ValueError(f"has label {shown(names[0])}; expected a name with words")
    sides = [value.get(name) for name in _SIDES]
    if not all(is_number(side) and -_SLACK <= side <= 100 + _SLACK for side in sides):
        raise ValueError(
            f"has x, y, width, height {shown(sides)}; expected percent of the image from 0 to 100"
        )
    x, y, width, height = (float(side) for side in sides)  # type: ignore[arg-type]
    high, wide = size
    edges = (x, wide), (y, high), (x + width, wide), (y + height, high)
    x0, y0, x1, y1 = (min(max(share / 100, 0.0), 1.0) * side for share, side in edges)
    return (x0, y0, x1, y1), names[0]
