"""Label maps: a gray PNG for each image, whose pixels are numbers of classes, as in ADE20K.

objectInfo150.txt    images/training/*.jpg    annotations/training/*.png
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fiber.data.formats.annotation_file import RecordList, read_text
from fiber.data.masks.mask import IdMap
from fiber.data.masks.panoptic import STUFF, THING
from fiber.data.record import AnyPath, Record
from fiber.messages import shown

KIND = "ADE20K label maps"
#: Folders of the splits.
_FOLDERS = {"train": "training", "val": "validation"}
_MAX_CLASSES = 255


class _Class(NamedTuple):
    number: int
    name: str
    group: str


def ade20k(folder: AnyPath, split: str, *, annotations: AnyPath | None = None) -> RecordList:
    """Read ADE20K's scene parsing benchmark, one record per image.

    `masks` is the map of an image with all classes, of which batches have those that the image
    shows. Pixels of 0 have no class. `labels` are the first names of the classes, `label_ids` their
    numbers from 1, and `label_groups` "thing" or "stuff" if the table tells.

    Args:
        folder: folder of the benchmark.
        split: "train" or "val".
        annotations: the table of classes; default: "objectInfo150.txt" in the folder.

    Raises:
        FileNotFoundError: if the table, a folder or the map of an image is missing.
        ValueError: if the table is invalid.
    """
    path = Path(folder) / "objectInfo150.txt" if annotations is None else Path(annotations)
    classes = _read_classes(path)
    if split not in _FOLDERS:
        raise ValueError(f"split is {shown(split)}; ADE20K has {', '.join(map(repr, _FOLDERS))}")
    images, maps = (path.parent / name / _FOLDERS[split] for name in ("images", "annotations"))
    for where in (images, maps):
        if not where.is_dir():
            raise FileNotFoundError(f"{where} does not exist; expected a folder of {KIND}")
    out = RecordList()
    out.classes = tuple(each.name for each in classes)
    ids, groups = tuple(each.number for each in classes), tuple(each.group for each in classes)
    for image in sorted(images.glob("*.jpg")):
        own = maps / f"{image.stem}.png"
        if not own.is_file():
            raise FileNotFoundError(f"{own} does not exist; expected the label map of {image}")
        out.append(
            Record(
                key=f"{split}/{image.stem}",
                images=(str(image),),
                image_id=str(image),
                text="",
                labels=out.classes,
                label_ids=ids,
                label_groups=groups if any(groups) else (),
                masks=IdMap(str(own), ids, coding="gray", may_lack=True),
                mask_labels=tuple(range(len(ids))),
            )
        )
    return out


def _read_classes(path: Path) -> list[_Class]:
    """Read a table with the columns Idx, Name and, if it is there, Stuff, separated by tabs."""
    lines = [line for line in read_text(path, KIND).split("\n") if line.strip()]
    columns = [name.strip() for name in lines[0].split("\t")] if lines else []
    if not {"Idx", "Name"} <= set(columns):
        raise ValueError(
            f"{path} begins with {shown(lines[0] if lines else '')}; expected columns Idx and Name,"
            f" separated by tabs (read as {KIND})"
        )
    found: dict[int, _Class] = {}
    for number, line in enumerate(lines[1:], 2):
        values = dict(zip(columns, (value.strip() for value in line.split("\t")), strict=False))
        index, name = values.get("Idx", ""), values.get("Name", "").split(",")[0].strip()
        if not (index.isdecimal() and len(index) < 4 and 0 < int(index) <= _MAX_CLASSES and name):
            raise ValueError(
                f"{path}: line {number} has Idx {shown(index)} and Name {shown(name)}; expected a"
                f" number from 1 to {_MAX_CLASSES} and a name (read as {KIND})"
            )
        if int(index) in found:
            raise ValueError(f"{path}: line {number} has duplicate Idx {index} (read as {KIND})")
        group = {"1": STUFF, "0": THING}.get(values.get("Stuff", ""), "")
        found[int(index)] = _Class(int(index), name, group)
    return sorted(found.values())
