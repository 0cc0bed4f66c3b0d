"""Boxes, spans and classes of annotation files, checked entry by entry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fiber.data.char_spans import CharSpan, whole_characters
from fiber.data.formats.annotation_file import RecordList, SourceFile
from fiber.data.record import TrueObjects

#: Boxes may leave the picture by this much (rounding) and are clipped; beyond it is an error.
BOX_SLACK_PIXELS = 1.0
#: Boxes no wider or no higher than this are dropped, as the published code does.
EMPTY_BOX_PIXELS = 1.0


def char_spans(
    file: SourceFile, entry: Mapping[str, Any], key: str, text: str, out: RecordList
) -> tuple[CharSpan, ...]:
    """Return a needed list of [start, end) of a text as spans.

    One that splits a character of several code points is widened and counted; one outside the text
    is an error of the record that is made of it.
    """
    spans = file.get(entry, key, list)
    try:
        found: tuple[CharSpan, ...] = tuple((start, end) for start, end in spans)
        whole_numbers = all(isinstance(value, int) for span in found for value in span)
    except (TypeError, ValueError):
        found, whole_numbers = (), False
    if not whole_numbers:
        raise file.error(f"has {key!r} {str(spans)[:60]}; expected a list of [start, end]")
    if text.isascii():
        return found
    whole = tuple(whole_characters(text, span) for span in found)
    out.add("spans that split a character", sum(a != b for a, b in zip(whole, found, strict=True)))
    return whole


def has_box(file: SourceFile, entry: Mapping[str, Any]) -> bool:
    """Check `bbox` (x, y, width, height); return whether it is more than a line."""
    box = file.get(entry, "bbox", list)
    if len(box) != 4 or not all(map(is_number, box)):
        raise file.error(f"has 'bbox' {str(box)[:60]}; expected [x, y, width, height] in pixels")
    return box[2] > EMPTY_BOX_PIXELS and box[3] > EMPTY_BOX_PIXELS


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no truth."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def told_size(picture: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (height, width) of a picture as its entry has them; None if it has none."""
    size = picture.get("height"), picture.get("width")
    if all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size):
        return size  # type: ignore[return-value]
    return None


def xyxy_box(
    file: SourceFile,
    entry: Mapping[str, Any],
    image_size: tuple[int, int],
    key: str,
    number: int,
) -> tuple[tuple[float, float, float, float], bool]:
    """Return `bbox` as (x0, y0, x1, y1), half-open, and whether it was clipped.

    Raises:
        ValueError: if it leaves the picture by more than a pixel, naming record and box, unless the
            file skips errors.
    """
    x, y, box_width, box_height = entry["bbox"]
    height, width = image_size
    box = (float(x), float(y), float(x + box_width), float(y + box_height))
    clipped = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height))
    beyond = max(abs(a - b) for a, b in zip(box, clipped, strict=True))
    if beyond > BOX_SLACK_PIXELS and not file.skips_errors:
        raise file.error(
            f"of record {key!r}: box {number} is (x0, y0, x1, y1) = {box}, {beyond:g} pixels"
            f" outside its picture of {height} x {width} (height x width)"
        )
    return clipped, beyond > 0


def class_names(file: SourceFile) -> dict[int, str]:
    """Return the name of each of the `categories`, by id.

    Raises:
        ValueError: for an id or a name that stands there twice.
    """
    names: dict[int, str] = {}
    for entry in file.walk("categories"):
        number, name = file.get(entry, "id", int), file.text(entry, "name")
        if number in names:
            raise file.error(f"has the id {number}, as {names[number]!r} has; expected each once")
        if name in names.values():
            raise file.error(f"has the name {name!r}, as another category has; expected each once")
        names[number] = name
    return names


def boxes_by_image(file: SourceFile) -> dict[Any, list[tuple[int, dict[str, Any]]]]:
    """Group `annotations` by `image_id`; each with its place in the file."""
    known = {entry.get("id") for entry in file.walk("images")}
    boxes: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    for index, entry in enumerate(file.walk("annotations")):
        image_id = file.get(entry, "image_id", int, str)
        if image_id not in known:
            raise file.error(f"has image_id {image_id!r}, which is not in 'images'")
        boxes.setdefault(image_id, []).append((index, entry))
    return boxes


def read_boxes(
    file: SourceFile,
    key: str,
    picture: dict[str, Any],
    entries: list[tuple[int, dict[str, Any]]],
    out: RecordList,
) -> list[tuple[tuple[float, float, float, float], dict[str, Any]]]:
    """Return the boxes of a picture with their entries.

    Crowds, boxes no wider or higher than a pixel, and reversed ones, of a width or a height below
    0, are left out and counted, as the published code leaves them out. Where the file skips errors,
    so are boxes that are no four numbers, and boxes of which clipping leaves nothing.
    """
    size = (file.get(picture, "height", int), file.get(picture, "width", int))
    found = []
    for index, entry in entries:
        file.at("annotations", entry, index)
        if entry.get("iscrowd"):
            out.add("crowd boxes")
            continue
        try:
            is_more_than_a_line = has_box(file, entry)
        except ValueError:
            if not file.skips_errors:
                raise
            out.add("boxes that are no four numbers")
            continue
        if not is_more_than_a_line:
            is_reversed = min(entry["bbox"][2:]) < 0
            out.add("reversed boxes" if is_reversed else "empty boxes")
            continue
        box, clipped = xyxy_box(file, entry, size, key, len(found))
        if min(box[2] - box[0], box[3] - box[1]) <= 0:
            out.add("boxes outside their pictures")
            continue
        if clipped:
            out.add("clipped boxes")
        found.append((box, entry))
    return found


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
