"""Boxes of Pascal VOC: an XML file for each image.

    Annotations/1.xml   JPEGImages/1.jpg   ImageSets/Main/train.txt     VOC
    train/1.xml         train/1.jpg                                     Roboflow
    annotations/1.xml   images/1.jpg                                    supervision, labelImg

Boxes of VOC are of pixels that count from 1, the last one included: 1 to 500 is a whole image of
500 pixels. If a box of the split begins at 0, as those of some tools do, boxes are half-open, and a
note says so. `classes.json` may list the names of all classes.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from fiber.data.formats.folders.rows import (
    MAX_FILE_BYTES,
    SPLIT_NAMES,
    BoxFiles,
    class_list,
    files_in,
    first_folder,
    images_in,
    read_small,
)
from fiber.data.formats.json_values import file_name_problem, is_number
from fiber.data.formats.row_records import DataRow, RowRecords, box_records
from fiber.data.prompts.classes import clean_class_name
from fiber.data.record import AnyPath
from fiber.messages import shown, shown_names

_XML = ".xml"
#: Maximum number of elements in one another.
_MAX_DEPTH = 32
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def find(path: Path) -> dict[str, Path]:
    """Return the splits of a folder in this format, each with its file or folder; {} for others."""
    # Flickr30k Entities has XML files of boxes, too.
    if not path.is_dir() or (path / "Sentences").is_dir():
        return {}
    annotations = first_folder(path / name for name in ("Annotations", "annotations"))
    if annotations is not None and _is_voc(annotations):
        lists = path / "ImageSets" / "Main"
        named = {split: lists / f"{split}.txt" for split in SPLIT_NAMES}
        found = {split: file for split, file in named.items() if file.is_file()}
        if found:
            return found
        if (folders := _split_folders(annotations)) or not files_in(annotations, _XML):
            return folders
        return {"train": annotations}
    if folders := _split_folders(path):
        return folders
    return {"train": path} if _is_voc(path) else {}


def _split_folders(path: Path) -> dict[str, Path]:
    found = {
        split: first_folder(path / name for name in names) for split, names in SPLIT_NAMES.items()
    }
    return {split: folder for split, folder in found.items() if folder and _is_voc(folder)}


def _is_voc(folder: Path) -> bool:
    """Return whether a folder, or one of its splits, has an annotation of this format."""
    files = files_in(folder, _XML)
    if not files:
        return bool(folder.name.lower() == "annotations" and _split_folders(folder))
    try:
        with files[0].open("rb") as file:
            return re.search(rb"<annotation[\s>]", file.read(4096)) is not None
    except OSError:
        return False


def voc(
    folder: AnyPath, split: str, *, annotations: AnyPath, on_error: str = "raise", **options: Any
) -> RowRecords:
    """Read the boxes of a split; see `box_records`.

    `annotations` is a folder of XML files, or a list of the names of images.

    Raises:
        FileNotFoundError: if a file or an image is missing.
        ValueError: if a file is invalid; the error names it.
    """
    source = _Annotations(Path(folder), Path(annotations), on_error)
    return box_records(source, on_error=on_error, **options)


class _Annotations(BoxFiles):
    """XML files of a split."""

    def __init__(self, folder: Path, annotations: Path, on_error: str) -> None:
        super().__init__(on_error)
        self._folder = folder
        if annotations.is_dir():
            self._files = files_in(annotations, _XML)
        else:
            root = first_folder(folder / name for name in ("Annotations", "annotations")) or folder
            files: dict[str, Path] = {}
            for number, line in enumerate(read_small(annotations).split("\n"), 1):
                if not line.split():
                    continue
                name = line.split()[0]
                if (problem := file_name_problem(name)) is not None:
                    raise ValueError(f"{annotations}: line {number} has {problem}")
                file = root / f"{name}{_XML}"
                # One file may be called by any number of names.
                if (place := os.path.realpath(file)) in files:
                    error = ValueError(
                        f"{annotations}: line {number} names {shown(name)} again; expected each"
                        " image once"
                    )
                    self.refuse(error, "names of images that are listed again")
                files.setdefault(place, file)
            self._files = list(files.values())
        self._images: dict[Path, dict[str, Path]] = {}
        self._names = class_list(folder)

    @property
    def class_names(self) -> list[str]:
        """Names of `classes.json`, if there are any; those of boxes follow."""
        return self._names

    def boxes(self) -> Iterator[DataRow]:
        """Yield a row for each file."""
        found: list[tuple[Path, Path, tuple[int, int], list[list[float]], list[str]]] = []
        for file in self._files:
            try:
                tree = read_xml(file)
                image = self._image(file, tree)
                size = _size(file, tree) or self.size_of(image)
                found.append((file, image, size, *self._objects(file, tree)))
            except (OSError, ValueError) as error:
                self.refuse(error, "annotations that cannot be read")
        from_zero = any(min(box[:2]) < 1 for *_, boxes, _ in found for box in boxes)
        if from_zero and found:
            self.notes.append(
                f"boxes of {self._files[0].parent} begin at 0, so they are read as half-open; those"
                " of VOC begin at 1"
            )
        shift = 0 if from_zero else 1
        for file, image, (height, width), boxes, labels in found:
            values = {
                "boxes_xyxy": [[x0 - shift, y0 - shift, x1, y1] for x0, y0, x1, y1 in boxes],
                "labels": labels,
                "width": width,
                "height": height,
                "image_id": str(image),
            }
            yield DataRow(str(file), f"{file.parent.name}/{file.stem}", values, (str(image),))

    def _objects(
        self, file: Path, tree: ElementTree.Element
    ) -> tuple[list[list[float]], list[str]]:
        boxes, labels = [], []
        for number, entry in enumerate(tree.findall("object")):
            try:
                box, label = _object(entry)
            except ValueError as problem:
                error = ValueError(f"{file}: object {number} {problem}")
                self.refuse(error, "objects that are no box")
                continue
            boxes.append(box)
            labels.append(label)
        return boxes, labels

    def _image(self, file: Path, tree: ElementTree.Element) -> Path:
        """Return the image of a file, by the name in it, or else by its own."""
        name = (tree.findtext("filename") or "").strip()
        if (problem := file_name_problem(name)) is not None:
            raise ValueError(f"{file} has filename {problem}")
        name = name.replace("\\", "/").rpartition("/")[2]
        split = file.parent.name
        folders = [file.parent]
        for root in dict.fromkeys((self._folder, file.parent.parent)):
            folders += [root / "JPEGImages", root / "images" / split, root / "images", root]
        for folder in dict.fromkeys(folders):
            if folder not in self._images:
                own = images_in(folder)
                self._images[folder] = {path.name: path for path in reversed(own)}
                self._images[folder] |= {path.stem: path for path in reversed(own)}
            here = self._images[folder]
            if (path := here.get(name) or here.get(file.stem)) is not None:
                return path
        raise FileNotFoundError(
            f"{file}: its image {shown(name or file.stem)} is not in"
            f" {shown_names([str(each) for each in folders if each.is_dir()])}"
        )


def read_xml(path: Path) -> ElementTree.Element:
    """Read an annotation without a document type, which could define endless entities.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no such file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; expected an annotation in XML") from None
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{path} has more than {MAX_FILE_BYTES:,} bytes; expected fewer")
    depth = 0

    def start(*_: Any) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"{path} has more than {_MAX_DEPTH} elements in one another")

    def end(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    def refuse(*_: Any) -> None:
        raise ValueError(f"{path} has a document type (<!DOCTYPE); expected an annotation without")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    try:
        parser.Parse(content, True)
        tree = ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, LookupError) as problem:
        raise ValueError(f"{path} is not valid XML: {problem}") from None
    except ValueError as problem:
        # From above, or from a codec of Python's that expat asks for an encoding.
        said = str(problem)
        raise ValueError(
            said if str(path) in said else f"{path} is not valid XML: {said}"
        ) from None
    if tree.tag != "annotation":
        raise ValueError(f"{path} has the element {shown(tree.tag)}; expected <annotation>")
    return tree


def _size(file: Path, tree: ElementTree.Element) -> tuple[int, int] | None:
    """Return the (height, width) in a file, or None if it has none, or zeros."""
    sides = []
    for name in ("height", "width"):
        text = (tree.findtext(f"size/{name}") or "0").strip()
        if not re.fullmatch(r"\d{1,10}", text, re.ASCII):
            raise ValueError(f"{file} has {name} {shown(text)}; expected pixels")
        sides.append(int(text))
    return (sides[0], sides[1]) if all(sides) else None


def _object(entry: ElementTree.Element) -> tuple[list[float], str]:
    name = (entry.findtext("name") or "").strip()
    if not clean_class_name(name).strip():
        raise ValueError(f"has name {shown(name)}; expected a name with words")
    box = entry.find("bndbox")
    if box is None:
        kinds = {"robndbox": "an oriented box", "polygon": "a polygon"}
        kind = next((what for tag, what in kinds.items() if entry.find(tag) is not None), "no box")
        raise ValueError(f"({shown(name)}) has {kind}; expected bndbox with xmin, ymin, xmax, ymax")
    sides = []
    for side in _SIDES:
        text = (box.findtext(side) or "").strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not is_number(value):
            raise ValueError(f"({shown(name)}) has {side} {shown(text)}; expected pixels")
        sides.append(value)
    return sides, name
