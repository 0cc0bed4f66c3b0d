"""Masks of generated images: visible segments, maps in COCO's panoptic form, masks of phrases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fiber.data.masks.codec import encode_rle

#: (x0, y0, x1, y1) in half-open integer pixel coordinates.
PixelBox = tuple[int, int, int, int]
#: Things with fewer visible pixels have no segment.
MIN_PIXELS = 12
#: Name of what is behind the things, if no stuff is drawn.
BACKGROUND = "canvas"
#: Id of the segment of the first kind of stuff; those of things count from 1.
_FIRST_STUFF_ID = 101


class Drawn(NamedTuple):
    """A drawn image and what is in it."""

    #: (H, W, 3) uint8 RGB.
    pixels: np.ndarray
    #: Bounding box of each object's pixels with alpha > 0.5, hidden ones included.
    boxes: list[PixelBox]
    #: (H, W) uint8: number of the object that is visible in a pixel, from 1; 0 behind them.
    things: np.ndarray
    #: (H, W) uint8: index of the kind of stuff behind the objects.
    stuff: np.ndarray


class VisibleSegment(NamedTuple):
    """Visible part of an object or of a kind of stuff."""

    #: Value of its pixels in the map, and its id in the file.
    id: int
    #: Class id, from 1; those of stuff come after those of things.
    category_id: int
    #: Index of the object, or -1 for stuff.
    thing: int
    #: Half-open, of the visible part.
    box: PixelBox
    area: int
    #: COCO's compressed run lengths.
    rle: str


def bounds(mask: np.ndarray) -> PixelBox | None:
    """Return the bounding box of an (H, W) bool mask, or None if the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def segments_of(
    drawn: Drawn, category_ids: Sequence[int], num_classes: int
) -> list[VisibleSegment]:
    """Return the segments of an image: objects in order, and then stuff.

    Args:
        drawn: the image.
        category_ids: class id of each object.
        num_classes: number of classes of objects.
    """
    found = []
    for thing, category in enumerate(category_ids):
        mask = drawn.things == thing + 1
        if np.count_nonzero(mask) >= MIN_PIXELS:
            found.append(_segment(mask, thing + 1, category, thing))
    for kind in map(int, np.unique(drawn.stuff)):
        mask = (drawn.things == 0) & (drawn.stuff == kind)
        if mask.any():
            found.append(_segment(mask, _FIRST_STUFF_ID + kind, num_classes + 1 + kind, -1))
    return found


def _segment(mask: np.ndarray, number: int, category: int, thing: int) -> VisibleSegment:
    box = bounds(mask)
    assert box is not None
    counts = encode_rle(mask).counts
    assert isinstance(counts, str)
    return VisibleSegment(number, category, thing, box, int(np.count_nonzero(mask)), counts)


def save_map(drawn: Drawn, segments: Sequence[VisibleSegment], path: str) -> None:
    """Write the ids of an image's segments as a PNG, of which all are below 256."""
    ids = np.zeros((*drawn.things.shape, 3), np.uint8)
    for segment in segments:
        if segment.thing >= 0:
            mask = drawn.things == segment.thing + 1
        else:
            mask = (drawn.things == 0) & (drawn.stuff == segment.id - _FIRST_STUFF_ID)
        ids[mask, 0] = segment.id
    Image.fromarray(ids).save(path, "PNG")


def map_name(file_name: str) -> str:
    """Return the path of the map of an image in the folder of its split's maps."""
    return file_name.partition("/")[2].removesuffix(".jpg") + ".png"


def panoptic_entry(
    image_id: int, file_name: str, segments: Sequence[VisibleSegment]
) -> dict[str, Any]:
    """Return the annotation of an image in COCO's panoptic form."""
    return {
        "image_id": image_id,
        "file_name": map_name(file_name),
        "segments_info": [
            {
                "id": segment.id,
                "category_id": segment.category_id,
                "area": segment.area,
                "bbox": _bbox(segment.box),
                "iscrowd": 0,
            }
            for segment in segments
        ],
    }


def segmentations(
    segments: Sequence[VisibleSegment], image_size: tuple[int, int]
) -> dict[int, dict[str, Any]]:
    """Return the `segmentation` of each visible object, by its index, for COCO's instances."""
    return {
        segment.thing: {"segmentation": {"counts": segment.rle, "size": list(image_size)}}
        for segment in segments
        if segment.thing >= 0
    }


def phrase_entries(
    image_id: int,
    image_size: tuple[int, int],
    segments: Sequence[VisibleSegment],
    phrases: Sequence[tuple[str, tuple[int, ...]]],
    first_id: int,
) -> list[dict[str, Any]]:
    """Return an annotation with a mask and sentences for each segment that phrases name.

    Args:
        image_id: id of the image.
        image_size: (height, width) in pixels.
        segments: its segments.
        phrases: texts with the ids of the segments that they name. A text that was there before is
            left out, as is one of a segment that is not visible.
        first_id: id of the first annotation and of the first sentence.
    """
    numbers = {segment.id: number for number, segment in enumerate(segments)}
    sentences: dict[int, list[dict[str, Any]]] = {}
    known = set[str]()
    for text, named in phrases:
        if text in known or not named or not all(each in numbers for each in named):
            continue
        for each in named:
            sentence = {"sent_id": first_id + len(known), "sent": text}
            sentences.setdefault(each, []).append(sentence)
        known.add(text)
    return [
        {
            "id": first_id + numbers[number],
            "image_id": image_id,
            "category_id": segments[numbers[number]].category_id,
            "segmentation": {"counts": segments[numbers[number]].rle, "size": list(image_size)},
            "area": segments[numbers[number]].area,
            "bbox": _bbox(segments[numbers[number]].box),
            "iscrowd": 0,
            "sentences": own,
        }
        for number, own in sorted(sentences.items())
    ]


def _bbox(box: PixelBox) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]
