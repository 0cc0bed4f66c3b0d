"""Boxes of YOLO datasets: a text file for each image, and the names of the classes.

    data.yaml                  names, and where the images of each split are
    train/images/1.jpg         train/labels/1.txt       Roboflow
    images/train/1.jpg         labels/train/1.txt       Ultralytics
    images/1.jpg               labels/1.txt             classes.txt (Label Studio), or data.yaml
                                                        without splits (supervision)

A line of a label file is a class, and the center, width and height of a box as fractions of the
size of the stored image. An image without such a file, or with an empty one, has no boxes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiber.data.formats.annotation_boxes import Box
from fiber.data.formats.folders.rows import (
    MAX_CLASSES,
    SPLIT_NAMES,
    BoxFiles,
    files_in,
    images_in,
    read_small,
    tried,
)
from fiber.data.formats.folders.yaml_file import read_yaml
from fiber.data.formats.json_values import file_name_problem
from fiber.data.formats.row_records import DataRow, RowRecords, box_records
from fiber.data.prompts.classes import clean_class_name
from fiber.data.record import AnyPath
from fiber.messages import shown, shown_names

#: Files that list a class a line.
_CLASS_FILES = ("classes.txt", "labels/classes.txt", "obj.names")
_YAML = (".yaml", ".yml")
_COLUMNS = "expected class, x and y of the center, width, height"
#: Fractions are out of [0, 1] by at most this much, which rounding explains.
_SLACK = 0.01
#: Maximum number of folders and lists of a split.
_MAX_PLACES = 1000


def find(path: Path) -> dict[str, Path]:
    """Return the splits of a YOLO dataset, a folder or its YAML file, each with what describes it.

    Returns an empty dict for other data.
    """
    is_file = path.is_file()
    if is_file and path.suffix not in _YAML and path.name not in _CLASS_FILES:
        return {}
    description = path if is_file else _description(path)
    if description is None:
        return {}
    if description.suffix in _YAML:
        try:
            content = read_yaml(description)
        except (ValueError, OSError):
            # Opening reports the error.
            return {"train": description}
        if not {"names", "nc"} & content.keys():
            return {}
    else:
        content = {}
    there = [split for split in SPLIT_NAMES if _images_of(description, content, split)]
    # Opening reports that there are no images.
    return dict.fromkeys(there or ["train"], description)


def _description(folder: Path) -> Path | None:
    """Return the file with the names of the classes."""
    for path in files_in(folder, _YAML):
        try:
            content = read_yaml(path)
        except (ValueError, OSError):
            continue
        if {"names", "nc"} & content.keys():
            return path
    lists = (folder / name for name in _CLASS_FILES)
    return next((path for path in lists if path.is_file()), None)


def yolo(
    folder: AnyPath, split: str, *, annotations: AnyPath, on_error: str = "raise", **options: Any
) -> RowRecords:
    """Read the boxes of a split; see `box_records`.

    `annotations` is the YAML file, or a file with a class a line.

    Raises:
        FileNotFoundError: if the split has no images.
        ValueError: if the names or a label file are invalid; the error names the file and line.
    """
    return box_records(_Labels(Path(annotations), split, on_error), on_error=on_error, **options)


class _Labels(BoxFiles):
    """Label files of a split."""

    def __init__(self, description: Path, split: str, on_error: str) -> None:
        super().__init__(on_error)
        is_yaml = description.suffix in _YAML
        content = read_yaml(description) if is_yaml else {}
        self._names = _names_of(description, content)
        _check_places(description, content)
        self._keypoints = "kpt_shape" in content
        self._images = _images_of(description, content, split)
        if not self._images:
            paths = _places(description, content, split)
            raise FileNotFoundError(
                f"{description}: no images of split {shown(split)}; tried {tried(paths)}"
            )
        if split != "train" and self._images == _images_of(description, content, "train"):
            self.notes.append(f"{description}: split {split!r} has the images of 'train'")

    @property
    def class_names(self) -> list[str]:
        """Class names, by index."""
        return self._names

    def boxes(self) -> Iterator[DataRow]:
        """Yield a row for each image."""
        labels, stems = dict[Path, Path](), dict[Path, set[str]]()
        for path in self._images:
            stems.setdefault(path.parent, set()).add(path.stem)
        for path in self._images:
            folder = path.parent
            if folder not in labels:
                labels[folder] = _labels_folder(folder)
                self._check_images(folder, labels[folder], stems[folder])
            try:
                height, width = self.size_of(path)
            except (OSError, ValueError) as error:
                self.refuse(_with_name(path, error), "images that cannot be read")
                continue
            file = labels[folder] / f"{path.stem}.txt"
            boxes, classes = self._read(file, width, height) if file.is_file() else ([], [])
            values = {"boxes_xyxy": boxes, "labels": classes, "width": width, "height": height}
            values["image_id"] = str(path)
            yield DataRow(str(file), f"{folder.name}/{path.name}", values, (str(path),))

    def _check_images(self, images: Path, labels: Path, here: set[str]) -> None:
        """Check that each label file has an image, if the whole folder is of this split."""
        if here != {path.stem for path in images_in(images)}:
            return
        for file in files_in(labels, ".txt"):
            if file.stem not in here and file.name not in ("classes.txt", "train.txt", "val.txt"):
                error = FileNotFoundError(f"{file} has no image; tried {images}/{file.stem}.*")
                self.refuse(error, "label files without an image")

    def _read(self, file: Path, width: int, height: int) -> tuple[list[list[float]], list[int]]:
        boxes, classes = [], []
        for number, line in enumerate(read_small(file).split("\n"), 1):
            if not line.strip():
                continue
            try:
                (x0, y0, x1, y1), category = self._line(line)
            except ValueError as problem:
                self.refuse(ValueError(f"{file}: line {number} {problem}"), "lines that are no box")
                continue
            boxes.append([x0 * width, y0 * height, x1 * width, y1 * height])
            classes.append(category)
        return boxes, classes

    def _line(self, line: str) -> tuple[Box, int]:
        """Return the box of a line as fractions, (x0, y0, x1, y1), and its class."""
        words = line.split()
        if len(words) != 5:
            raise ValueError(f"has {len(words):,} columns{self._kind(len(words))}; {_COLUMNS}")
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            raise ValueError(f"is {shown(line.strip())}; {_COLUMNS}, five numbers") from None
        category, x, y, width, height = numbers
        if not 0 <= category < len(self._names) or category % 1:
            raise ValueError(
                f"has class {shown(words[0])}; expected 0 to {len(self._names) - 1}, as there are"
                f" {len(self._names)} names of classes"
            )
        if not all(-_SLACK <= value <= 1 + _SLACK for value in numbers[1:]):
            raise ValueError(
                f"has {shown(' '.join(words[1:]))}; {_COLUMNS}, as fractions of the image from 0 to"
                " 1, not pixels"
            )
        sides = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        x0, y0, x1, y1 = (min(max(side, 0.0), 1.0) for side in sides)
        return (x0, y0, x1, y1), int(category)

    def _kind(self, columns: int) -> str:
        """Say what a line with other columns is."""
        if self._keypoints:
            return ", a pose with keypoints"
        if columns == 6:
            return ", a prediction with its confidence"
        if columns == 9:
            return ", an oriented box or a polygon"
        return ", a polygon" if columns >= 7 and columns % 2 else ""


def _with_name(path: Path, error: Exception) -> Exception:
    said = str(error)
    return ValueError(said if str(path) in said else f"{path}: {said}")


def _names_of(path: Path, content: dict[str, Any]) -> list[str]:
    """Return the names of the classes."""
    if path.suffix not in _YAML:
        names: Any = [line.strip() for line in read_small(path).splitlines() if line.strip()]
    elif "names" not in content:
        raise ValueError(
            f"{path} has no 'names', but {shown_names(content)}; it looks like a YOLO dataset, of"
            " which this is missing: expected the names of the classes, as in names: [mug, plate]"
        )
    else:
        names = content["names"]
    if isinstance(names, dict):
        keys = [str(number) for number in range(min(len(names), MAX_CLASSES))]
        if set(names) != set(keys):
            raise ValueError(
                f"{path} has names of {shown_names(names)}; expected 0 to {len(names) - 1}"
            )
        names = [names[key] for key in keys]
    if not isinstance(names, list) or not 0 < len(names) <= MAX_CLASSES:
        raise ValueError(f"{path} has 'names' {shown(names)}; expected a list of names")
    seen = set[str]()
    for name in names:
        if not isinstance(name, str) or not clean_class_name(name).strip() or name in seen:
            raise ValueError(
                f"{path} has name {shown(name)} in 'names'; expected different names with words"
            )
        seen.add(name)
    number = content.get("nc", str(len(names)))
    if number != str(len(names)):
        raise ValueError(f"{path} has nc {shown(number)}, but {len(names)} names")
    return names


def _given(content: dict[str, Any], split: str) -> Any:
    """Return what a description says about the images of a split, or None."""
    return next((content[n] for n in SPLIT_NAMES.get(split, (split,)) if content.get(n)), None)


def _check_places(description: Path, content: dict[str, Any]) -> None:
    """Check what a description says about the images of its splits."""
    for split in SPLIT_NAMES:
        given = _given(content, split)
        values = given if isinstance(given, list) else [given] * (given is not None)
        if len(values) > _MAX_PLACES:
            raise ValueError(
                f"{description} has {len(values):,} places of images in {split!r}; expected at most"
                f" {_MAX_PLACES:,} folders and lists"
            )
        for value in values:
            if not isinstance(value, str) or file_name_problem(value) is not None:
                raise ValueError(
                    f"{description} has {split!r} {shown(value)}; expected a folder of images, a"
                    " file (.txt) that lists images, or a list of these"
                )


def _places(description: Path, content: dict[str, Any], split: str) -> list[Path]:
    """Return the places where the images of a split may be, likely ones first."""
    root, aliases = description.parent, SPLIT_NAMES.get(split, (split,))
    if description.parent.name == "labels":
        root = root.parent
    given = _given(content, split)
    values = given[:_MAX_PLACES] if isinstance(given, list) else [given]
    base = content.get("path")
    places = []
    for value in values:
        if not isinstance(value, str) or file_name_problem(value) is not None:
            continue
        if isinstance(base, str) and base and file_name_problem(base) is None:
            places.append(root / base / value)
        # Roboflow writes ../train/images into the folder that has train.
        stripped = value
        while stripped.startswith("../"):
            stripped = stripped[3:]
        places += [root / value, root / stripped]
    if given is None:
        for name in aliases:
            places += [root / name / "images", root / "images" / name]
        if split == "train" and not any(
            (root / "images" / name).is_dir() for names in SPLIT_NAMES.values() for name in names
        ):
            places.append(root / "images")
    # One place may be called by any number of names.
    found = dict[str, Path]()
    for place in places:
        found.setdefault(os.path.realpath(place), place)
    return list(found.values())


def _images_of(description: Path, content: dict[str, Any], split: str) -> list[Path]:
    """Return the images of a split, in order of their paths; [] if there are none."""
    found: dict[Path, None] = {}
    several = any(isinstance(content.get(n), list) for n in SPLIT_NAMES.get(split, (split,)))
    for place in _places(description, content, split):
        images = _listed(place, description.parent) if place.suffix == ".txt" else images_in(place)
        inside = place / "images"
        if not images and place.is_dir() and inside.is_dir():
            images = images_in(inside)
        found.update(dict.fromkeys(images))
        if found and not several:
            break
    return sorted({path.resolve(): path for path in found}.values())


def _listed(file: Path, root: Path) -> list[Path]:
    """Return the images that a text file lists, one a line, relative to its folder or `root`."""
    if not file.is_file():
        return []
    found = []
    for line in read_small(file).splitlines():
        name = line.strip()
        if name and file_name_problem(name) is None:
            paths = [file.parent / name, root / name]
            found.append(next((path for path in paths if path.is_file()), paths[0]))
    return found


def _labels_folder(images: Path) -> Path:
    """Return the folder of the label files of the images in a folder."""
    parts = list(images.parts)
    for at in reversed(range(len(parts))):
        if parts[at] == "images":
            labels = Path(*parts[:at], "labels", *parts[at + 1 :])
            if labels.is_dir():
                return labels
            break
    return images
