"""Boxes, spans and classes of annotation files, with checks of every entry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fiber.data.char_spans import CharSpan, whole_characters
from fiber.data.formats.annotation_file import AnnotationFile, RecordList
from fiber.data.record import TrueObjects

#: Boxes may exceed the image by this much (rounding) and are clipped; more is an error.
BOX_SLACK_PIXELS = 1.0
#: Boxes of at most this width or height are dropped, as in the published code.
EMPTY_BOX_PIXELS = 1.0


def char_spans(
    file: AnnotationFile, entry: Mapping[str, Any], key: str, text: str, out: RecordList
) -> tuple[CharSpan, ...]:
    """Return a required list of [start, end) in a text as spans.

    A span that splits a character of several code points is widened and counted. Bounds are checked
    by `Record`.
    """
    spans = file.get(entry, key, list)
    try:
        found: tuple[CharSpan, ...] = tuple((start, end) for start, end in spans)
        are_integers = all(isinstance(value, int) for span in found for value in span)
    except (TypeError, ValueError):
        found, are_integers = (), False
    if not are_integers:
        raise file.error(f"has {key!r} {str(spans)[:60]}; expected a list of [start, end]")
    if text.isascii():
        return found
    whole = tuple(whole_characters(text, span) for span in found)
    out.skip("spans that split a character", sum(a != b for a, b in zip(whole, found, strict=True)))
    return whole


def has_box(file: AnnotationFile, entry: Mapping[str, Any]) -> bool:
    """Check `bbox` (x, y, width, height); return whether it exceeds `EMPTY_BOX_PIXELS`."""
    box = file.get(entry, "bbox", list)
    if len(box) != 4 or not all(map(is_number, box)):
        raise file.error(f"has 'bbox' {str(box)[:60]}; expected [x, y, width, height] in pixels")
    return box[2] > EMPTY_BOX_PIXELS and box[3] > EMPTY_BOX_PIXELS


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def annotated_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (height, width) of an image according to its entry; None if not given."""
    size = image.get("height"), image.get("width")
    if all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size):
        return size  # type: ignore[return-value]
    return None


def xyxy_box(
    file: AnnotationFile,
    entry: Mapping[str, Any],
    image_size: tuple[int, int],
    key: str,
    number: int,
) -> tuple[tuple[float, float, float, float], bool]:
    """Return `bbox` as (x0, y0, x1, y1), half-open, and whether it was clipped.

    Raises:
        ValueError: if it exceeds the image by more than a pixel, with record and box, unless the
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
            f" outside its image of {height} x {width} (height x width)"
        )
    return clipped, beyond > 0


def class_names(file: AnnotationFile) -> dict[int, str]:
    """Return the names of the `categories`, by id.

    Raises:
        ValueError: for a duplicate id or name.
    """
    names: dict[int, str] = {}
    for entry in file.walk("categories"):
        number, name = file.get(entry, "id", int), file.text(entry, "name")
        if number in names:
            raise file.error(f"has the id {number}, a duplicate of {names[number]!r}")
        if name in names.values():
            raise file.error(f"has the name {name!r}, a duplicate of another category")
        names[number] = name
    return names


def boxes_by_image(file: AnnotationFile) -> dict[Any, list[tuple[int, dict[str, Any]]]]:
    """Group `annotations` by `image_id`, each with its index in the file."""
    known = {entry.get("id") for entry in file.walk("images")}
    boxes: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    for index, entry in enumerate(file.walk("annotations")):
        image_id = file.get(entry, "image_id", int, str)
        if image_id not in known:
            raise file.error(f"has image_id {image_id!r}, which is not in 'images'")
        boxes.setdefault(image_id, []).append((index, entry))
    return boxes


def read_boxes(
    file: AnnotationFile,
    key: str,
    image: dict[str, Any],
    entries: list[tuple[int, dict[str, Any]]],
    out: RecordList,
) -> list[tuple[tuple[float, float, float, float], dict[str, Any]]]:
    """Return the boxes of an image with their entries.

    As in the published code, crowds, boxes of at most one pixel in width or height, and reversed
    boxes (negative width or height) are dropped and counted. If the file skips errors, so are
    malformed boxes and boxes outside the image.
    """
    size = (file.get(image, "height", int), file.get(image, "width", int))
    found = []
    for index, entry in entries:
        file.at("annotations", entry, index)
        if entry.get("iscrowd"):
            out.skip("crowd boxes")
            continue
        try:
            is_large_enough = has_box(file, entry)
        except ValueError:
            if not file.skips_errors:
                raise
            out.skip("boxes that are no four numbers")
            continue
        if not is_large_enough:
            is_reversed = min(entry["bbox"][2:]) < 0
            out.skip("reversed boxes" if is_reversed else "empty boxes")
            continue
        box, clipped = xyxy_box(file, entry, size, key, len(found))
        if min(box[2] - box[0], box[3] - box[1]) <= 0:
            out.skip("boxes outside their pictures")
            continue
        if clipped:
            out.skip("clipped boxes")
        found.append((box, entry))
    return found


def frequencies(file: AnnotationFile) -> dict[int, str]:
    """Return LVIS' frequency group ("r", "c" or "f") of each category id, "" in other data sets."""
    entries = file.walk("categories")
    return {entry["id"]: str(entry.get("frequency", "")) for entry in entries}


def true_objects(
    file: AnnotationFile,
    image: Mapping[str, Any],
    boxes: Mapping[Any, list[tuple[int, dict[str, Any]]]],
    label_index: Mapping[int, int],
) -> TrueObjects:
    """Return all boxes of an image unchanged, with the verified classes of LVIS.

    Args:
        file: the annotation file.
        image: an entry of its `images`.
        boxes: annotations of each image, from `boxes_by_image`.
        label_index: index in `Record.labels` of each category id.

    Raises:
        ValueError: for an invalid box or an unknown category.
    """
    boxes_xyxy, labels, areas, crowd = [], [], [], []
    for index, entry in boxes.get(image["id"], ()):
        file.at("annotations", entry, index)
        has_box(file, entry)
        x, y, width, height = map(float, entry["bbox"])
        boxes_xyxy.append((x, y, x + width, y + height))
        labels.append(file.look_up(label_index, entry, "category_id", "categories"))
        area = file.get(entry, "area", int, float) if "area" in entry else width * height
        areas.append(float(area))
        crowd.append(bool(entry.get("iscrowd")))
    file.at("images", image)
    known = {}
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        given = file.get(image, key, list) if key in image else []
        known[key] = frozenset(
            file.look_up(label_index, {key: category}, key, "categories") for category in given
        )
    return TrueObjects(
        boxes_xyxy=tuple(boxes_xyxy),
        labels=tuple(labels),
        areas=tuple(areas),
        crowd=tuple(crowd),
        absent=known["neg_category_ids"] if "neg_category_ids" in image else None,
        incomplete=known["not_exhaustive_category_ids"],
    )
