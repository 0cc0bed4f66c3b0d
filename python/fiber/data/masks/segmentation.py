"""Masks in the `segmentation` of COCO's annotations, and the folders of images and maps."""

from __future__ import annotations

import contextlib
import re
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fiber.data.formats.annotation_file import (
    AnnotationFile,
    RecordList,
    find_images_folder,
    images_folder,
)
from fiber.data.formats.json_values import MAX_NUMBER, id_key, is_integer
from fiber.data.masks.mask import Mask, Polygons, Rle
from fiber.data.record import AnyPath
from fiber.messages import shown

#: Folders of the images of COCO beside other files: MDETR's, and REFER's.
_COCO = ("train2014", "images/train2014", "images/mscoco/images/train2014")
_EXPECTED = "polygons [[x, y, ...], ...], or run lengths {'counts': ..., 'size': [height, width]}"


def read_segmentation(file: AnnotationFile, entry: Mapping[str, Any]) -> Mask | None:
    """Read the `segmentation` of an annotation; None if it has none, as in files of boxes.

    The loader checks points and run lengths.

    Raises:
        ValueError: if it is neither polygons nor run lengths; the error names the file and entry.
    """
    found = entry.get("segmentation")
    if found is None or found in ([], {}):
        return None
    if isinstance(found, list):
        return Polygons(tuple(_ring(file, ring) for ring in found))
    counts, size = (found.get("counts"), found.get("size")) if isinstance(found, dict) else (0, 0)
    if not isinstance(size, list) or len(size) != 2 or not all(is_integer(s, 1) for s in size):
        raise file.error(f"has 'segmentation' {shown(found)}; expected {_EXPECTED}")
    if isinstance(counts, list):
        if not all(is_integer(count, -MAX_NUMBER, MAX_NUMBER) for count in counts):
            raise file.error(f"has 'counts' {shown(counts)}; expected integers")
        counts = tuple(counts)
    elif not isinstance(counts, str):
        raise file.error(f"has 'segmentation' {shown(found)}; expected {_EXPECTED}")
    return Rle(counts, (size[0], size[1]))


def _ring(file: AnnotationFile, ring: Any) -> tuple[float, ...]:
    if isinstance(ring, list):
        numbers: list[Any] = ring
        # Files have millions of numbers; this checks and converts them at once.
        with contextlib.suppress(TypeError, OverflowError):
            return tuple(array("d", numbers))
    raise file.error(f"has a polygon {shown(ring)}; expected a list of numbers")


def masks_of(
    file: AnnotationFile,
    entries: Sequence[tuple[int, dict[str, Any]]],
    label_index: Mapping[Any, int],
    out: RecordList,
    boxes: Sequence[tuple[Any, dict[str, Any]]] = (),
) -> dict[str, Any]:
    """Return the masks of an image as fields of `Record`, those of crowds included.

    `label_index` maps the `id_key` of each category to its index in `Record.labels`. Objects
    without a mask are left out and counted. `boxes` are those of the record, each with its entry.
    """
    masks, labels, crowd = [], [], []
    numbers = dict[int, int]()
    for index, entry in entries:
        file.at("annotations", entry, index)
        mask = read_segmentation(file, entry)
        if mask is None:
            out.skip("objects without a mask")
            continue
        numbers[id(entry)] = len(masks)
        masks.append(mask)
        labels.append(file.look_up(label_index, entry, "category_id", "categories"))
        crowd.append(bool(entry.get("iscrowd")))
    is_any = any(crowd)
    return {
        "masks": tuple(masks),
        "mask_labels": tuple(labels),
        "mask_crowd": tuple(crowd) if is_any else (),
        "box_masks": _box_masks(numbers, boxes),
    }


def masks_of_boxes(
    file: AnnotationFile,
    boxes: Sequence[tuple[Any, dict[str, Any]]],
    labels: Sequence[int | None],
    out: RecordList,
) -> dict[str, Any]:
    """Return the masks of boxes as fields of `Record`.

    Boxes have their entries; `labels` are their indices in `Record.labels`. Boxes without a mask
    are counted.
    """
    masks, mask_labels, numbers = [], [], dict[int, int]()
    for (_, entry), label in zip(boxes, labels, strict=True):
        file.at("annotations", entry)
        mask = read_segmentation(file, entry)
        if mask is None:
            out.skip("boxes without a mask")
            continue
        numbers[id(entry)] = len(masks)
        masks.append(mask)
        mask_labels.append(label)
    return {
        "masks": tuple(masks),
        "mask_labels": tuple(mask_labels),
        "box_masks": _box_masks(numbers, boxes),
    }


def _box_masks(
    numbers: Mapping[int, int], boxes: Sequence[tuple[Any, dict[str, Any]]]
) -> tuple[int, ...]:
    """Return `Record.box_masks`, from the number of the mask of each entry, by its `id`."""
    if not numbers:
        return ()
    return tuple(numbers.get(id(entry), -1) for _, entry in boxes)


def image_root(file: AnnotationFile, folder: AnyPath, images: AnyPath | None) -> str:
    """Find the folder of the images of a COCO file.

    It is "images" beside the file, or a folder named as the end of the file: "train2017" for
    "panoptic_train2017.json".

    Raises:
        FileNotFoundError: if there is none.
    """
    if images is not None:
        return images_folder(folder, images)
    names = [entry["file_name"] for entry in file.images()]
    parent = file.path.parent
    last = re.sub(r"^[a-z+_]*_(?=[a-z0-9]+$)", "", file.path.stem)
    split = last.rstrip("0123456789")
    bases = dict.fromkeys([Path(folder), parent, parent.parent])
    parts = ("images", last, f"images/{last}", split, f"images/{split}", f"{split}2014", "", *_COCO)
    found = find_images_folder(names, [base / part for base in bases for part in parts])
    return str(found) if found is not None else images_folder(folder, images)


def by_image(file: AnnotationFile) -> dict[Any, list[tuple[int, dict[str, Any]]]]:
    """Group the entries of `annotations`, each with its index, by the `id_key` of the image.

    Raises:
        ValueError: if an image is unknown.
    """
    known = {file.id_key(entry, "id") for entry in file.walk("images")}
    found: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    for index, entry in file.numbered("annotations"):
        image = id_key(file.get(entry, "image_id", int, str))
        if image not in known:
            raise file.error(f"has image_id {shown(entry['image_id'])}, which is not in 'images'")
        found.setdefault(image, []).append((index, entry))
    return found
