"""Files that no encoder writes: segments taken out, marked otherwise, cut off or damaged."""

import struct
from collections.abc import Iterator

import numpy as np


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of every segment up to the first scan's."""
    at = 2
    while True:
        marker = data[at + 1]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, at, end
        if marker == 0xDA:
            return
        at = end


def without(data: bytes, *markers: int) -> bytes:
    """Take out all segments of some kinds."""
    kept, last = [data[:2]], 2
    for marker, start, end in segments(data):
        if marker not in markers:
            kept.append(data[start:end])
        last = end
    return b"".join([*kept, data[last:]])


def with_frame(data: bytes, at: int, value: int) -> bytes:
    """Change a byte of the frame header of a baseline file, counted from its marker.

    Raises:
        ValueError: for a file that is not baseline.
    """
    for marker, start, _ in segments(data):
        if marker == 0xC0:
            return data[: start + at] + bytes([value]) + data[start + at + 1 :]
    raise ValueError("no baseline frame header")


def extended(data: bytes) -> bytes:
    """Mark a baseline file as extended sequential, which says the same in other words."""
    return with_frame(data, 1, 0xC1)


def arithmetic(data: bytes) -> bytes:
    """Mark a baseline file as coded arithmetically, which its data are not."""
    return with_frame(data, 1, 0xC9)


def of_12_bits(data: bytes) -> bytes:
    """Mark a baseline file as extended with samples of 12 bits, which its data are not."""
    return extended(with_frame(data, 4, 12))


def with_orientation(data: bytes, orientation: int, order: str) -> bytes:
    """Put an EXIF segment with an orientation behind the start, `order` "<" or ">"."""
    tiff = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, 1)
    tiff += struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0) + bytes(4)
    body = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def data_start(data: bytes) -> int:
    """Where the data of the first scan begin."""
    return [end for _, _, end in segments(data)][-1]


def scans(data: bytes) -> tuple[bytes, list[bytes]]:
    """Cut a file into what stands before its first Huffman table, and its scans with their tables.

    The end marker is left out.
    """
    starts = [start for marker, start, _ in segments(data) if marker in (0xC4, 0xDA)]
    first = last = min(starts)
    found, at = [], first
    while data[at + 1] != 0xD9:
        is_scan = data[at + 1] == 0xDA
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if is_scan:
            at = next(
                mark
                for mark in range(at, len(data))
                if data[mark] == 0xFF and data[mark + 1] not in (0, *range(0xD0, 0xD8))
            )
            found.append(data[last:at])
            last = at
    return data[:first], found


def band(scan: bytes) -> tuple[int, int, int, int]:
    """First and last coefficient, and upper and lower bit, of one of `scans`."""
    start, end, bits = scan[_band_at(scan) : _band_at(scan) + 3]
    return start, end, bits >> 4, bits & 15


def with_band(scan: bytes, start: int, end: int, high: int, low: int) -> bytes:
    """Say in the header of one of `scans` that it has other coefficients and bits."""
    at = _band_at(scan)
    return scan[:at] + bytes([start, end, high << 4 | low]) + scan[at + 3 :]


def _band_at(scan: bytes) -> int:
    at = 0
    while scan[at + 1] != 0xDA:
        at += 2 + int.from_bytes(scan[at + 2 : at + 4], "big")
    return at + 5 + 2 * scan[at + 4]


def truncated(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut off in the data of a scan."""
    return data[: int(rng.integers(data_start(data) + 1, len(data) - 2))]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Change a few bytes of the data, none of them to or from a marker's FF."""
    changed = bytearray(data)
    for at in rng.integers(data_start(data), len(data) - 2, int(rng.integers(1, 6))):
        if 0xFF not in changed[at - 1 : at + 2]:
            changed[at] = int(rng.integers(0, 255))
    return bytes(changed)


def sampling(data: bytes) -> tuple[int, ...]:
    """Sampling factors of every component, 0x21 for twice as wide."""
    for marker, start, _ in segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return tuple(data[start + 11 + 3 * index] for index in range(data[start + 9]))
    raise ValueError("no frame header")
