"""What metrics of detection need of an annotation file beside the boxes that training reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fiber.data.records import TrueObjects
from fiber.data.source_boxes import has_box
from fiber.data.source_files import SourceFile


def frequencies(file: SourceFile) -> dict[int, str]:
    """Return for each category whether LVIS calls it rare, common or frequent, "" in other sets."""
    entries = file.walk("categories")
    return {entry["id"]: str(entry.get("frequency", "")) for entry in entries}


def true_objects(
    file: SourceFile,
    picture: Mapping[str, Any],
    boxes_of: Mapping[Any, list[tuple[int, dict[str, Any]]]],
    places: Mapping[int, int],
) -> TrueObjects:
    """Return all boxes of a picture as they are written, with what LVIS says of its classes.

    Args:
        file: that is read.
        picture: its entry of `images`.
        boxes_of: annotations of each picture, as `boxes_by_image` gives them.
        places: of each category id in `Record.labels`.

    Raises:
        ValueError: for a box that is none, or a category that the file does not know.
    """
    boxes, labels, areas, crowd = [], [], [], []
    for index, entry in boxes_of.get(picture["id"], ()):
        file.at("annotations", entry, index)
        has_box(file, entry)
        x, y, width, height = map(float, entry["bbox"])
        boxes.append((x, y, x + width, y + height))
        labels.append(file.look_up(places, entry, "category_id", "categories"))
        area = file.get(entry, "area", int, float) if "area" in entry else width * height
        areas.append(float(area))
        crowd.append(bool(entry.get("iscrowd")))
    file.at("images", picture)
    known = {}
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        given = file.get(picture, key, list) if key in picture else []
        known[key] = frozenset(
            file.look_up(places, {key: category}, key, "categories") for category in given
        )
    return TrueObjects(
        boxes_xyxy=tuple(boxes),
        labels=tuple(labels),
        areas=tuple(areas),
        crowd=tuple(crowd),
        absent=known["neg_category_ids"] if "neg_category_ids" in picture else None,
        incomplete=known["not_exhaustive_category_ids"],
    )
