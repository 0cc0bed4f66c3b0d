"""Decode masks of records to arrays, and encode arrays as COCO's run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fiber import _core
from fiber.data.masks.mask import IdMap, Mask, Masks, Rle
from fiber.data.record import AnyPath


def encode_rle(mask: Any) -> Rle:
    """Encode an (H, W) mask of any type, not 0 inside, as COCO's compressed run lengths.

    Raises:
        ValueError: if the array has another shape.
    """
    inside = np.ascontiguousarray(np.asarray(mask) != 0).view(np.uint8)
    if inside.ndim != 2:
        raise ValueError(f"mask has shape {inside.shape}; expected (H, W)")
    text = _core.encode_rle(inside).decode()
    return Rle(text, (inside.shape[0], inside.shape[1]))


def decode_masks(masks: Masks, height: int, width: int) -> np.ndarray:
    """Decode the masks of a stored image of `height` x `width` pixels as an (M, H, W) bool array.

    Raises:
        FileNotFoundError, DecodeError: if an id map is missing or is no PNG of 8 bits a sample.
        ValueError: if a mask is invalid, or of another size; the error gives its index.
    """
    if isinstance(masks, IdMap):
        buffer, size = _core.decode_id_map(masks, read_map(masks))
        if size != (height, width):
            raise ValueError(
                f"masks: the id map has {size[0]} x {size[1]} pixels (height x width), but the"
                f" image has {height} x {width}"
            )
    else:
        buffer = _core.decode_masks(list[Mask](masks), height, width)
    return unpack(np.asarray(buffer), width)


def unpack(packed: np.ndarray, width: int) -> np.ndarray:
    """Unpack (..., ceil(width / 8)) bits as (..., width) bool."""
    return np.unpackbits(packed, axis=-1, count=width).view(bool)


def read_map(id_map: IdMap) -> bytes:
    """Return the content of an id map's PNG."""
    image = loaded_map(id_map).image
    return image if isinstance(image, bytes) else Path(as_path(image)).read_bytes()


def as_path(image: Any) -> AnyPath:
    """Return an image that is not bytes, which is a path."""
    return image


def loaded_map(id_map: IdMap) -> IdMap:
    """Return a map whose image is read on access with its image."""
    image = id_map.image
    if isinstance(image, Sequence) and not isinstance(image, str | bytes):
        return id_map._replace(image=image[0])
    return id_map
