"""Read and validate the boxes, spans and classes of annotation files."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from fiber.data.char_spans import CharSpan, whole_characters
from fiber.data.formats.annotation_file import AnnotationFile, RecordList, ids_of
from fiber.data.formats.json_values import id_key, is_integer, is_number
from fiber.data.prompts.classes import clean_class_name
from fiber.data.record import MAX_SIDE, TrueObjects
from fiber.messages import shown

#: (x0, y0, x1, y1), half-open, in pixels.
Box = tuple[float, float, float, float]
#: Boxes, each with the entry that it was read from.
EntryBoxes = list[tuple[Box, dict[str, Any]]]

#: Boxes that exceed the image by up to this much (rounding) are clipped; more is an error.
BOX_SLACK_PIXELS = 1.0
#: What to do with such a box.
CLIP_HINT = '; correct it, or clip such boxes by on_error="skip" (--set data.on_error=skip)'
#: Boxes of at most this width or height are dropped, as in the published code.
EMPTY_BOX_PIXELS = 1.0
#: Values of boxes that are relative to the image size are out of [0, 1] by at most this much.
_UNIT_SLACK = 0.5
#: Number of boxes that look relative for each one that does not, in a file that is taken for
#: normalized.
_RELATIVE_PER_BOX = 10


def char_spans(
    file: AnnotationFile, entry: Mapping[str, Any], key: str, text: str, out: RecordList
) -> tuple[CharSpan, ...]:
    """Read a required list of [start, end] pairs as character spans of `text`.

    A span that splits a multi-code-point character is widened to cover it, and counted. `Record`
    checks the bounds.
    """
    spans = file.get(entry, key, list)
    if not all(
        isinstance(span, list) and len(span) == 2 and all(map(is_integer, span)) for span in spans
    ):
        raise file.error(f"has {key!r} {shown(spans)}; expected a list of [start, end] pairs")
    found: tuple[CharSpan, ...] = tuple((start, end) for start, end in spans)
    if text.isascii():
        return found
    whole = tuple(whole_characters(text, span) for span in found)
    out.skip("spans that split a character", sum(a != b for a, b in zip(whole, found, strict=True)))
    return whole


def span_key(span: CharSpan) -> bytes:
    """Return the key of a span in a dict; see `json_values.id_key`."""
    return b"%d-%d" % span


def annotated_size(file: AnnotationFile, image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (height, width) in an image entry, or None if a side is missing, null or 0."""
    size = image.get("height"), image.get("width")
    if any(side is None or side == 0 for side in size):
        return None
    if not all(is_integer(side, 1, MAX_SIDE) for side in size):
        raise file.error(
            f"has height {shown(size[0])} and width {shown(size[1])}; expected pixels, integers"
            f" from 1 to {MAX_SIDE:,}"
        )
    return size  # type: ignore[return-value]


def clip_box(box: Box, size: tuple[float, float]) -> tuple[Box, float]:
    """Clip a box to a (height, width) image. Return the clipped box and the excess in pixels."""
    height, width = size
    clipped = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height))
    return clipped, max(abs(a - b) for a, b in zip(box, clipped, strict=True))


def sorted_categories(file: AnnotationFile) -> list[dict[str, Any]]:
    """Return the entries in `categories` in ascending order of their ids.

    Raises:
        ValueError: if an id or name is duplicated.
    """
    found, names = list[dict[str, Any]](), set[str]()
    name_of: dict[Any, str] = {}
    for entry in file.walk("categories"):
        number, name = file.get(entry, "id", int), file.text(entry, "name")
        if (key := id_key(number)) in name_of:
            raise file.error(f"has duplicate id {number}, already used by {shown(name_of[key])}")
        if name in names:
            raise file.error(
                f"has duplicate name {shown(name)}, already used by a different category"
            )
        if not clean_class_name(name).strip():
            raise file.error(
                f"has name {shown(name)}, of which a prompt has nothing; expected words"
            )
        found.append(entry)
        name_of[key] = name
        names.add(name)
    return sorted(found, key=operator.itemgetter("id"))


def boxes_by_image(file: AnnotationFile) -> dict[Any, list[tuple[int, dict[str, Any]]]]:
    """Group the entries of `annotations`, each with its index, by the `id_key` of the image.

    Raises:
        ValueError: if an image is unknown, or boxes seem to be relative to the image size.
    """
    known = {file.id_key(entry, "id") for entry in file.walk("images")}
    boxes: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    unit = UnitBoxes()
    for index, entry in file.numbered("annotations"):
        image = file.id_key(entry, "image_id")
        if image not in known:
            raise file.error(
                f"has image_id {shown(entry['image_id'])}, which is not in 'images'{ids_of(known)}"
            )
        boxes.setdefault(image, []).append((index, entry))
        if _is_box(box := entry.get("bbox")):
            unit.add(box, min(box[2:]), (index, entry))
    if unit.look_normalized:
        file.at("annotations", unit.first[1], unit.first[0])
        raise file.error(
            f"has 'bbox' {shown(unit.first[1]['bbox'])}, {unit.problem('[x, y, width, height]')}"
        )
    return boxes


class UnitBoxes:
    """Count of the boxes of a file that look relative to the size of their image.

    Such boxes have values from 0 to 1, some of which are fractions, and at most 1 pixel of width or
    height. A few values of a file may be out of that range: a box extends beyond its image, was
    rounded, or is a mistake.
    """

    def __init__(self) -> None:
        #: Where the first such box is, as the reader tells it.
        self.first: Any = None
        self._count = self._relative = self._in_pixels = self._thin = 0

    def add(self, values: Sequence[float], shorter_side: float, where: Any) -> None:
        """Count a box with the given values in the file."""
        self._count += 1
        is_empty = shorter_side <= EMPTY_BOX_PIXELS
        if min(values) < -_UNIT_SLACK or max(values) > 1 + _UNIT_SLACK:
            self._thin += is_empty
            self._in_pixels += not is_empty
        elif is_empty and any(value % 1 for value in values):
            self._relative += 1
            self.first = where if self._relative == 1 else self.first

    @property
    def look_normalized(self) -> bool:
        """Whether boxes look relative to the image size, and boxes that do not are exceptions.

        Boxes that are not empty in pixels are evidence against it: there may be one for each
        `_RELATIVE_PER_BOX` that look relative.
        """
        return 0 < self._relative >= self._thin + _RELATIVE_PER_BOX * self._in_pixels

    def problem(self, expected: str) -> str:
        """Return the end of an error about the boxes, of which one is shown before."""
        within = self._count - self._thin - self._in_pixels
        return (
            f"and {within:,} of {self._count:,} boxes have values of about 0 to 1, so they look"
            f" normalized; expected {expected} in pixels (multiply x by the width of the image, and"
            " y by its height)"
        )


def _is_box(box: Any) -> TypeGuard[list[float]]:
    return isinstance(box, list) and len(box) == 4 and all(map(is_number, box))


def read_box(file: AnnotationFile, entry: Mapping[str, Any]) -> Box:
    """Return `bbox` (x, y, width, height) as a half-open box."""
    box = file.get(entry, "bbox", list)
    if not _is_box(box):
        raise file.error(f"has 'bbox' {shown(box)}; expected [x, y, width, height] in pixels")
    x, y, width, height = box
    return float(x), float(y), float(x + width), float(y + height)


def corners_hint(box: Sequence[float], size: tuple[int, int]) -> str:
    """Return a hint if [x, y, width, height] exceeds its image, but would fit as corners, or ""."""
    x0, y0, x1, y1 = box
    if not (x0 < x1 and y0 < y1) or clip_box((x0, y0, x1, y1), size)[1] > BOX_SLACK_PIXELS:
        return ""
    return (
        f"; {shown(list(box))} would fit as corners [x0, y0, x1, y1], but 'bbox' is"
        " [x, y, width, height]: write [x0, y0, x1 - x0, y1 - y0]"
    )


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
    height, width = size = file.size(image)
    found = []
    for index, entry in entries:
        file.at("annotations", entry, index)
        if entry.get("iscrowd"):
            out.skip("crowd boxes")
            continue
        try:
            box = read_box(file, entry)
        except ValueError:
            if not file.skips_errors:
                raise
            out.skip("boxes that are no four numbers")
            continue
        shorter = min(entry["bbox"][2:])
        if shorter <= EMPTY_BOX_PIXELS:
            out.skip("reversed boxes" if shorter < 0 else "empty boxes")
            continue
        clipped, beyond = clip_box(box, size)
        if beyond > BOX_SLACK_PIXELS and not file.skips_errors:
            key = shown(f"{file.path.stem}/{image['id']}")
            raise file.error(
                f"of record {key}: box {len(found)}, (x0, y0, x1, y1) = {box}, extends"
                f" {beyond:g} pixels beyond its image ({height=}, {width=})"
                f"{corners_hint(entry['bbox'], size) or CLIP_HINT}"
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
    label_index: Mapping[Any, int],
) -> TrueObjects:
    """Return all objects of an image, unchanged, with LVIS's absent and incomplete classes.

    `label_index` maps the `id_key` of each category to its index in `Record.labels`.

    Raises:
        ValueError: if a box is invalid or a category is unknown.
    """
    boxes_xyxy, labels, areas, crowd = [], [], [], []
    for index, entry in entries:
        file.at("annotations", entry, index)
        boxes_xyxy.append(read_box(file, entry))
        width, height = map(float, entry["bbox"][2:])
        labels.append(file.look_up(label_index, entry, "category_id", "categories"))
        areas.append(file.number(entry, "area") if "area" in entry else width * height)
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
