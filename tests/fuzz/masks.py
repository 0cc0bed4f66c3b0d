"""Target for masks, as rust/fuzz/targets/masks.rs has it, but compared with pycocotools."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from pycocotools import mask as coco

from fiber.data import IdMap, Polygons, Rle, decode_masks
from fiber.data.masks.codec import encode_rle
from tests.data.masks.generated_masks import png

#: Numbers of a polygon of an input.
_RING = 24


def masks(data: bytes, folder: Path) -> bool:
    """Decode a mask; the first byte chooses its kind, the next two the size of its image."""
    if len(data) < 3:
        return False
    kind, height, width, content = data[0] % 5, data[1] % 64 + 1, data[2] % 64 + 1, data[3:]
    if kind == 4:
        return _id_map(content, height, width)
    size = (height, width)
    if kind == 0:
        mask = Rle(content, size)
    elif kind == 1:
        mask = Rle(tuple(value for (value,) in struct.iter_unpack("<h", _whole(content, 2))), size)
    else:
        unpack, scale = ("<h", 256) if kind == 2 else ("<f", 1)
        step = struct.calcsize(unpack)
        numbers = [value / scale for (value,) in struct.iter_unpack(unpack, _whole(content, step))]
        rings = [tuple(numbers[at : at + _RING]) for at in range(0, len(numbers), _RING)]
        mask = Polygons(tuple(rings))
    try:
        found = decode_masks((mask,), height, width)[0]
    except ValueError as error:
        assert "mask 0" in str(error), error
        return False
    if isinstance(mask, Polygons):
        expected = coco.merge(coco.frPyObjects([list(ring) for ring in mask.rings], *size))
    elif isinstance(mask.counts, bytes):
        expected = {"counts": mask.counts, "size": list(size)}
    else:
        expected = coco.frPyObjects({"counts": list(mask.counts), "size": list(size)}, *size)
    assert np.array_equal(found, coco.decode(expected).astype(bool))
    return True


def _whole(content: bytes, step: int) -> bytes:
    return content[: len(content) // step * step]


def _id_map(content: bytes, height: int, width: int) -> bool:
    for coding in ("rgb", "gray"):
        try:
            decode_masks(IdMap(content, (1, 2, 3), coding, may_lack=True), height, width)
        except ValueError as error:
            assert any(word in str(error) for word in ("id map", "mask ", "image has")), error
        else:
            return True
    return False


def mask_seeds() -> list[bytes]:
    """A mask of each kind."""
    rng = np.random.default_rng(0)
    mask = rng.random((20, 30)) < 0.6
    text = encode_rle(mask).counts
    assert isinstance(text, str)
    ring = [1.0, 2.5, 20.0, 3.0, 25.5, 18.0, 4.0, 15.0, 1.0, 2.5]
    ids = rng.integers(0, 4, (20, 30)).astype(np.uint8)
    size = bytes([19, 29])
    return [
        b"\0" + size + text.encode(),
        b"\1" + size + struct.pack("<4h", 100, 200, 50, 250),
        b"\2" + size + struct.pack("<10h", *(int(256 * value) for value in ring)),
        b"\3" + size + struct.pack("<10f", *ring),
        b"\4" + size + png(ids),
        b"\4" + size + png(np.stack([ids, ids * 0, ids * 0], -1)),
    ]
