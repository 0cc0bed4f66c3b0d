"""Masks as annotation files store them. The loader decodes them in Rust, beside the image.

All refer to the stored pixels of an image: with `apply_orientation`, the loader turns masks with
their image.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal, NamedTuple

from fiber.messages import shown

#: Maximum height and width of an image in pixels.
_MAX_SIDE = 2**31 - 1
#: Exclusive upper bound of ids in a map, by coding.
_MAX_ID = {"rgb": 2**24, "gray": 2**8}


class Rle(NamedTuple):
    """COCO's run lengths, down the columns of the image: zeros and ones in turn."""

    #: COCO's compressed text, or the lengths.
    counts: bytes | str | tuple[int, ...]
    #: (height, width) in pixels.
    size: tuple[int, int]

    kind = "rle"  # type: ignore[misc]


class Polygons(NamedTuple):
    """Union of polygons, drawn as by pycocotools."""

    #: x and y of each point in turn, in pixels; three points or more.
    rings: tuple[tuple[float, ...], ...]

    kind = "polygons"  # type: ignore[misc]


class PackedMask(NamedTuple):
    """Rows of bits, each padded to whole bytes, as by `numpy.packbits(mask, axis=1)`."""

    bits: bytes
    #: (height, width) in pixels.
    size: tuple[int, int]

    kind = "packed"  # type: ignore[misc]


class IdMap(NamedTuple):
    """Masks in a PNG, whose pixels have the ids of their masks."""

    #: A path or the content of a file, or a sequence of one of them, which is read on access.
    image: str | bytes | PathLike[str] | Sequence[str | bytes | PathLike[str]]
    #: Id of each mask.
    ids: tuple[int, ...]
    #: "rgb": id = r + 256 g + 256 ** 2 b, as in COCO's panoptic files; "gray": the gray value, or
    #: the index of a palette.
    coding: Literal["rgb", "gray"] = "rgb"
    #: Ids of pixels without a mask.
    void: tuple[int, ...] = (0,)
    #: True if a mask may have no pixel, as classes that an image does not show; batches leave such
    #: masks out. If False, it is an error.
    may_lack: bool = False


Mask = Rle | Polygons | PackedMask
#: Masks of a record: each on its own, or all in one map.
Masks = tuple[Mask, ...] | IdMap


def count_masks(masks: Masks) -> int:
    """Return the number of masks."""
    return len(masks.ids) if isinstance(masks, IdMap) else len(masks)


def masks_problem(masks: Any) -> str | None:
    """Describe what is wrong with the masks of a record, or return None.

    What takes decoding (lengths of runs, points outside the image, sizes) is found by the loader.
    """
    if isinstance(masks, IdMap):
        return _map_problem(masks)
    if not isinstance(masks, tuple):
        return f"masks is of type {type(masks).__name__}; expected a tuple of masks, or an IdMap"
    for index, mask in enumerate(masks):
        if not isinstance(mask, Rle | Polygons | PackedMask):
            return (
                f"mask {index} is of type {type(mask).__name__}; expected Rle, Polygons or"
                " PackedMask"
            )
        if not isinstance(mask, Polygons) and not _is_size(mask.size):
            return f"mask {index} has size {shown(mask.size)}; expected (height, width) in pixels"
        if isinstance(mask, Rle) and not isinstance(mask.counts, bytes | str | tuple):
            kind = type(mask.counts).__name__
            return f"mask {index} has counts of type {kind}; expected COCO's text or a tuple"
        if isinstance(mask, PackedMask) and not isinstance(mask.bits, bytes):
            return f"mask {index} has bits of type {type(mask.bits).__name__}; expected bytes"
    return None


def _map_problem(id_map: IdMap) -> str | None:
    # Images that are read on access are a sequence of one.
    if not isinstance(id_map.image, str | bytes | PathLike | Sequence):
        return f"the id map is of type {type(id_map.image).__name__}; expected a path or bytes"
    if id_map.coding not in _MAX_ID:
        return f"the id map has coding {shown(id_map.coding)}; expected 'rgb' or 'gray'"
    most = _MAX_ID[id_map.coding]
    for name in ("ids", "void"):
        for value in getattr(id_map, name):
            if type(value) is not int or not 0 <= value < most:
                return f"the id map has {shown(value)} in {name}; expected integers below {most}"
    return None


def _is_size(size: Any) -> bool:
    try:
        height, width = map(operator.index, size)
    except (TypeError, ValueError):
        return False
    return 1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE
