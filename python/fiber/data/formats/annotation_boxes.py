"""Read and validate the boxes, spans and classes of annotation files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fiber.data.char_spans import CharSpan, whole_characters
from fiber.data.formats.annotation_file import AnnotationFile, RecordList
from fiber.data.record import TrueObjects

#: (x0, y0, x1, y1), half-open, in pixels.
Box = tuple[float, float, float, float]
#: Boxes, each with the entry that it was read from.
EntryBoxes = list[tuple[Box, dict[str, Any]]]

#: Boxes that exceed the image by up to this much (rounding) are clipped; more is an error.
BOX_SLACK_PIXELS = 1.0
#: Boxes of at most this width or height are dropped, as in the published code.
EMPTY_BOX_PIXELS = 1.0


def char_spans(
    file: AnnotationFile, entry: Mapping[str, Any], key: str, text: str, out: RecordList
) -> tuple[CharSpan, ...]:
    """Read a required list of [start, end] pairs as character spans of `text`.

    A span that splits a multi-code-point character is widened to cover it, and counted. `Record`
    checks the bounds.
    """
    spans = file.get(entry, key, list)
    try:
        found: tuple[CharSpan, ...] = tuple((start, end) for start, end in spans)
    except (TypeError, ValueError):
        found = ()
    if len(found) != len(spans) or not all(isinstance(v, int) for span in found for v in span):
        raise file.error(f"has {key!r} {str(spans)[:60]}; expected a list of [start, end] pairs")
    if text.isascii():
        return found
    whole = tuple(whole_characters(text, span) for span in found)
    out.skip("spans that split a character", sum(a != b for a, b in zip(whole, found, strict=True)))
    return whole


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def annotated_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (height, width) in an image entry, or None if it is absent or invalid."""
    size = image.get("height"), image.get("width")
    if all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size):
        return size  # type: ignore[return-value]
    return None


def clip_box(box: Box, size: tuple[float, float]) -> tuple[Box, float]:
    """Clip a box to a (height, width) image. Return the clipped box and the excess in pixels."""
    height, width = size
    clipped = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height))
    return clipped, max(abs(a - b) for a, b in zip(box, clipped, strict=True))


def categories_by_id(file: AnnotationFile) -> dict[int, dict[str, Any]]:
    """Return a dict of the entries in `categories`, keyed by id in ascending order.

    Raises:
        ValueError: if an id or name is duplicated.
    """
    found: dict[int, dict[str, Any]] = {}
    names = set()
    for entry in file.walk("categories"):
        number, name = file.get(entry, "id", int), file.text(entry, "name")
        if number in found:
            raise file.error(
                f"has duplicate id {number}, already used by {found[number]['name']!r}"
            )
        if name in names:
            raise file.error(f"has duplicate name {name!r}, already used by a different category")
        found[number] = entry
        names.add(name)
    return dict(sorted(found.items()))


def boxes_by_image(file: AnnotationFile) -> dict[Any, list[tuple[int, dict[str, Any]]]]:
    """Group the entries of `annotations`, each with its index, by `image_id`."""
    known = {entry.get("id") for entry in file.walk("images")}
    boxes: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    for index, entry in enumerate(file.walk("annotations")):
        image_id = file.get(entry, "image_id", int, str)
        if image_id not in known:
            raise file.error(f"has image_id {image_id!r}, which is not in 'images'")
        boxes.setdefault(image_id, []).append((index, entry))
    return boxes


def _read_box(file: AnnotationFile, entry: Mapping[str, Any]) -> Box:
    """Return `bbox` (x, y, width, height) as a half-open box."""
    box = file.get(entry, "bbox", list)
    if len(box) != 4 or not all(map(is_number, box)):
        raise file.error(f"has 'bbox' {str(box)[:60]}; expected [x, y, width, height] in pixels")
    x, y, width, height = box
    return float(x), float(y), float(x + width), float(y + height)


def read_boxes(
    file: AnnotationFile,
    image: dict[str, Any],
    entries: list[tuple[int, dict[str, Any]]],
    out: RecordList,
) -> EntryBoxes:
    """Return the boxes of an image with their entries.

    As in the published code, crowd boxes, boxes of at most one pixel in width or height, and
    reversed boxes (negative width or height) are dropped and counted. Malformed boxes and boxes
    that exceed the image by more than one pixel raise ValueError. If `file.skips_errors` is set,
    malformed boxes are dropped, other boxes are clipped to the image, and both are counted.
    """
    height, width = file.get(image, "height", int), file.get(image, "width", int)
    found = []
    for index, entry in entries:
        file.at("annotations", entry, index)
        if entry.get("iscrowd"):
            out.skip("crowd boxes")
            continue
        try:
            box = _read_box(file, entry)
        except ValueError:
            if not file.skips_errors:
                raise
            out.skip("boxes that are no four numbers")
            continue
        shorter = min(entry["bbox"][2:])
        if shorter <= EMPTY_BOX_PIXELS:
            out.skip("reversed boxes" if shorter < 0 else "empty boxes")
            continue
        clipped, beyond = clip_box(box, (height, width))
        if beyond > BOX_SLACK_PIXELS and not file.skips_errors:
            raise file.error(
                f"of record '{file.path.stem}/{image['id']}': box {len(found)}, (x0, y0, x1, y1) ="
                f" {box}, extends {beyond:g} pixels beyond its image ({height=}, {width=})"
            )
        if min(clipped[2] - clipped[0], clipped[3] - clipped[1]) <= 0:
            out.skip("boxes outside their pictures")
            continue
        out.skip("clipped boxes", int(beyond > 0))
        found.append((clipped, entry))
    return found


def true_objects(
    file: AnnotationFile,
    image: Mapping[str, Any],
    entries: list[tuple[int, dict[str, Any]]],
    label_index: Mapping[int, int],
) -> TrueObjects:
    """Return all objects of an image, unchanged, with LVIS's absent and incomplete classes.

    `label_index` maps each category id to its index in `Record.labels`.

    Raises:
        ValueError: if a box is invalid or a category is unknown.
    """
    boxes_xyxy, labels, areas, crowd = [], [], [], []
    for index, entry in entries:
        file.at("annotations", entry, index)
        boxes_xyxy.append(_read_box(file, entry))
        width, height = map(float, entry["bbox"][2:])
        labels.append(file.look_up(label_index, entry, "category_id", "categories"))
        area = file.get(entry, "area", int, float) if "area" in entry else width * height
        areas.append(float(area))
        crowd.append(bool(entry.get("iscrowd")))
    file.at("images", image)
    known = {
        key: frozenset(
            file.look_up(label_index, {key: category}, key, "categories")
            for category in (file.get(image, key, list) if key in image else ())
        )
        for key in ("neg_category_ids", "not_exhaustive_category_ids")
    }
    return TrueObjects(
        boxes_xyxy=tuple(boxes_xyxy),
        labels=tuple(labels),
        areas=tuple(areas),
        crowd=tuple(crowd),
        absent=known["neg_category_ids"] if "neg_category_ids" in image else None,
        incomplete=known["not_exhaustive_category_ids"],
    )
