"""Name the format that a folder is nearest to, by content, and the one thing that it lacks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

from fiber.data.datasets.registry import KINDS, layouts_of
from fiber.data.formats.folders.rows import SPLIT_NAMES, images_in
from fiber.data.image_file import ENDINGS
from fiber.messages import shown_names

#: Numbers of entries of a folder, of files and of bytes of a file that are looked at.
_ENTRIES, _FILES, _BYTES = 1000, 20, 1 << 16

_BOX_COLUMNS = frozenset({"xmin", "ymin", "xmax", "ymax"})
_EXPORT = "export the boxes as COCO, YOLO or Pascal VOC instead"
_COCO = re.compile(r'\s*\{(?=.*"images"\s*:)(?=.*"annotations"\s*:)', re.DOTALL)
_COCO_SOURCES = ("", "captions", "detection", "instances")
#: What is in the beginning of other JSON files, and what to do with these; {path} is the file.
_JSON = {
    re.compile(r'\s*\[\s*\{(?=[^}]*"image_id")(?=[^}]*"bbox")(?=[^}]*"score")', re.DOTALL): (
        "{path} looks like results in COCO format, of which one thing is missing: the file of the"
        " images and categories"
    ),
    re.compile(r'\s*\[\s*\{.*"rectanglelabels"', re.DOTALL): (
        '{path} is an export of Label Studio as JSON-MIN; export it as "JSON"'
    ),
    re.compile(
        r'\s*\[\s*\{.*"coordinates"', re.DOTALL
    ): f"{{path}} is in CreateML format; {_EXPORT}",
    re.compile(r'\s*\{.*"(?:shapes|imagePath)"\s*:', re.DOTALL): (
        f"{{path}} is in LabelMe format, which has polygons; {_EXPORT}"
    ),
    re.compile(r'\s*\{.*"_via_', re.DOTALL): f"{{path}} is in VIA format; {_EXPORT}",
}


def nearest_format(folder: Path, source: str = "") -> str | None:
    """Return a sentence about a folder that nearly is in a known format, or None.

    `source` is what is looked for; "" is anything.
    """
    roots = [folder, *(folder / name for names in SPLIT_NAMES.values() for name in names)]
    roots.append(folder / "annotations")
    for root in roots:
        for path in _files(root, ".json"):
            if _is_known(path.relative_to(folder).as_posix()):
                continue
            start = _start(path)
            if source in _COCO_SOURCES and _COCO.match(start):
                return (
                    f"{path} is in COCO format, under a name of its own; pass this file, or name it"
                    " annotations.json"
                )
            for pattern, said in _JSON.items():
                if pattern.match(start):
                    return said.format(path=path)
        for path in _files(root, ".csv"):
            if {name.strip("\"' ") for name in _header(path)} >= _BOX_COLUMNS:
                return f"{path} has a box a line, as of TensorFlow or RetinaNet; {_EXPORT}"
        if any(_files(root, ".tfrecord", ".record")):
            return f"{root} has TFRecord files; {_EXPORT}"
    if (folder / "JPEGImages").is_dir():
        return (
            f"{folder} looks like Pascal VOC, of which one thing is missing: the boxes, in"
            " Annotations/*.xml"
        )
    return _only_images(folder)


def _is_known(name: str) -> bool:
    """Return whether a source reads files of this name in a folder."""
    layouts = (layout for source in KINDS for layout in layouts_of(source))
    known = (each for layout in layouts if not layout.recognize for each in layout.names)
    splits = [split for names in SPLIT_NAMES.values() for split in names]
    return any(
        fnmatch(name, each.format(split=split))
        for each in known
        for split in (splits if each.startswith("{split}.") else "*")
    )


def _only_images(folder: Path) -> str | None:
    """Describe a folder of images without annotations, or with a folder for each class."""
    there = _names(folder)
    if there and all(name.lower().endswith(ENDINGS) for name in there):
        return (
            f"{folder} has images, of which one thing is missing: what is in them, such as texts in"
            ' metadata.jsonl, a line {"file_name": "1.jpg", "text": "a dog"} for each image'
        )
    names = [name for names in SPLIT_NAMES.values() for name in names]
    for root in (folder, *(folder / name for name in names)):
        classes = [name for name in _names(root) if images_in(root / name)]
        if classes and classes == _names(root) and not {*names, "images"} & {*classes}:
            return (
                f"{root} has a folder of images for each class ({shown_names(classes[:4])}), as for"
                " classification; expected texts or boxes, such as a line"
                ' {"file_name": "cat/1.jpg", "text": "a cat"} in metadata.jsonl'
            )
    return None


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in islice(entries, _ENTRIES))
    except OSError:
        return []


def _files(folder: Path, *suffixes: str) -> Iterable[Path]:
    found = (folder / name for name in _names(folder) if name.endswith(suffixes))
    return list(islice(found, _FILES))


def _header(path: Path) -> list[str]:
    return _start(path).partition("\n")[0].strip().split(",")


def _start(path: Path) -> str:
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return file.read(_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
