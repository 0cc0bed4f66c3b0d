"""Formats that are not read, recognized by content, and what to convert them to.

Such data are often what a user begins with. An error that lists the names of known files would not
help them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from fiber.data.formats.folders import image_folder, yolo
from fiber.data.formats.folders.nearest import nearest_format
from fiber.data.image_file import ENDINGS

#: Maximum number of entries of a folder, and of bytes of a file, that are looked at.
_MOST_ENTRIES, _MOST_BYTES = 1000, 4096
#: Folders that may have the labels of a split.
_SPLIT_FOLDERS = ("", "train", "val", "valid", "test")

_ONLY_BOXES = "boxes of classes only (source detection; see docs/data.md)"
_WHOLE = "pass the folder of the dataset, as in docs/data.md"
_YOLO_KEY = re.compile(r"^(names|nc|train|val)\s*:", re.MULTILINE)
_YOLO_LABEL = re.compile(r"\s*\d+(\s+[-+.\deE]+){4,}\s*")


def unsupported_data(path: Path, source: str = "") -> str | None:
    """Describe a folder or a file in a format that is not read, and what to do.

    `source` is what is looked for; "" is anything. Returns None for all other data.
    """
    if path.is_file():
        if path.suffix == ".xml" and _is_voc(path):
            return f"{path} is the Pascal VOC annotation of one image; {_WHOLE}"
        return yolo_problem(path) if path.suffix in (".yaml", ".yml") else None
    names = set(_names_in(path))
    if {"dataset_info.json", "state.json"} <= names:
        return (
            f"{path} was written by Dataset.save_to_disk of Hugging Face's datasets, without the"
            " name of a split; write dataset.to_parquet('train.parquet') and pass that file, or"
            " DatasetDict({'train': dataset}).save_to_disk(FOLDER)"
        )
    for name in sorted(names):
        if name.endswith((".yaml", ".yml")) and (problem := yolo_problem(path / name)) is not None:
            return problem
    if (problem := image_folder.nearly(path)) is not None:
        return problem
    for folder in (path / name for name in _SPLIT_FOLDERS):
        if (found := _unsupported_split(path, folder)) is not None:
            return found
    return nearest_format(path, source)


def _unsupported_split(root: Path, folder: Path) -> str | None:
    """Describe the labels of a split in a format that is not read, or return None."""
    for labels in (folder / "labels", root / "labels" / folder.name):
        if any(_is_yolo_label(file) for file in _first(labels, ".txt")):
            return (
                f"{root} looks like a YOLO dataset, of which one thing is missing: the names of the"
                f" classes, in data.yaml (names: [mug, plate]) or in classes.txt, one a line"
                if not yolo.find(root)
                else f"{root} is a YOLO dataset, which has {_ONLY_BOXES}"
            )
    if not (root / "Sentences").is_dir():
        # Flickr30k Entities has such files, too, and is read.
        for annotations in (folder / "Annotations", folder):
            if any(_is_voc(file) for file in _first(annotations, ".xml")):
                return f"{root} looks like Pascal VOC, which has {_ONLY_BOXES}"
    return None


def yolo_problem(path: Path) -> str | None:
    """Describe a YAML file of a YOLO dataset and what to do, or return None."""
    if len(set(_YOLO_KEY.findall(_start(path)))) < 2:
        return None
    return (
        f"{path} looks like the description of a YOLO dataset, which has {_ONLY_BOXES}, with images"
        " and labels of each split, and with 'names' of the classes in this file"
    )


def names_there(folder: Path) -> list[str]:
    """Return names of what is in a folder, of a thousand at most; those of images are the last."""
    return sorted(_names_in(folder), key=lambda name: (name.lower().endswith(ENDINGS), name))


def _names_in(folder: Path) -> Iterable[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in islice(entries, _MOST_ENTRIES)]
    except OSError:
        return ()


def _first(folder: Path, suffix: str) -> list[Path]:
    """Return one of the files in a folder with a suffix, if there is any."""
    # Exporters add notes such as classes.txt.
    notes = ("classes.txt", "README.txt", "readme.txt")
    names = sorted(n for n in _names_in(folder) if n.endswith(suffix) and n not in notes)
    return [folder / name for name in names[:1]]


def _start(path: Path) -> str:
    """Return the beginning of a text file, or "" if it cannot be read."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _is_voc(path: Path) -> bool:
    return re.search(r"<annotation[\s>]", _start(path)) is not None


def _is_yolo_label(path: Path) -> bool:
    lines = _start(path).split("\n")
    return bool(lines) and _YOLO_LABEL.fullmatch(lines[0]) is not None
