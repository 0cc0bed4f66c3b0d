"""Hostile masks: run lengths, polygons and id maps that ask for much time or memory."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fiber.data import IdMap, Polygons, Rle, decode_masks

#: Height and width of an image of the most pixels that the package decodes.
_MOST = 13_377


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def flat_png(height: int, width: int, color: int = 0, rows: int | None = None) -> bytes:
    """A PNG of zeros, of 8 bits a sample, compressed as far as possible."""
    channels = {0: 1, 2: 3}[color]
    row = b"\0" * (1 + channels * width if rows != 0 else 0)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(height if rows is None else rows))
    head = struct.pack(">IIBBBBB", height, width, 8, color, 0, 0, 0)
    # Width comes first.
    head = struct.pack(">II", width, height) + head[8:]
    chunks = (_chunk(b"IHDR", head), _chunk(b"IDAT", data + packer.flush()), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _zigzag(points: int, height: int, width: int) -> Polygons:
    x = np.where(np.arange(points) % 2, width, 0.0)
    y = np.linspace(0, height, points)
    return Polygons((tuple(np.stack([x, y], 1).ravel().tolist()),))


def cases() -> dict[str, Callable[[], object]]:
    """Functions that decode a hostile mask."""
    side, most = 4000, _MOST
    pixel = flat_png(1, 1)
    full = Rle((0, side * side), (side, side))
    return {
        "text of zeros": lambda: decode_masks((Rle(b"0" * 3_000_000, (side, side)),), side, side),
        "runs of a pixel": lambda: decode_masks((Rle(b"1" * 3_000_000, (side, side)),), side, side),
        "one run without an end": lambda: decode_masks((Rle(b"o" * 3_000_000, (9, 9)),), 9, 9),
        "runs that overflow": lambda: decode_masks((Rle((2**63 - 1,) * 9, (9, 9)),), 9, 9),
        "largest image, full": lambda: decode_masks((Rle((0, most**2), (most, most)),), most, most),
        "many full masks": lambda: decode_masks((full,) * 12, side, side),
        "more masks than fit": lambda: decode_masks((full,) * 5000, side, side),
        "image that does not fit": lambda: decode_masks((full,), 2**31, 2**31),
        "zigzag": lambda: decode_masks((_zigzag(100_000, most, most),), most, most),
        "zigzags": lambda: decode_masks((_zigzag(300, side, side),) * 60, side, side),
        "tall zigzag": lambda: decode_masks((_zigzag(100_000, 10**6, 100),), 10**6, 100),
        "far points": lambda: decode_masks((Polygons(((0.0, 0, 1e300, 9, 9, 9),)),), 9, 9),
        "largest map": lambda: decode_masks(
            IdMap(flat_png(most, most), (1,), "gray", may_lack=True), most, most
        ),
        "largest map of colors": lambda: decode_masks(
            IdMap(flat_png(8000, 8000, 2), (1, 2), may_lack=True), 8000, 8000
        ),
        "map without rows": lambda: decode_masks(
            IdMap(flat_png(2**31 - 1, 2**31 - 1, rows=0), (1,), "gray"), 2**31 - 1, 2**31 - 1
        ),
        "map that is cut": lambda: decode_masks(
            IdMap(flat_png(9000, 9000, rows=9), (1,), "gray", may_lack=True), 9000, 9000
        ),
        "a million ids": lambda: decode_masks(IdMap(pixel, tuple(range(1, 10**6))), 1, 1),
        "an id a million times": lambda: decode_masks(
            IdMap(pixel, (1,) * 10**6, "gray", may_lack=True), 1, 1
        ),
    }


def read(path: Path) -> object:
    """Decode the case that a file names, each error with the file."""
    try:
        return cases()[path.read_text()]()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
