"""Pictures that a user hands in -> arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fiber import _core
from fiber.data.arguments import check_arguments
from fiber.data.record import StoredImage


def load_image(picture: Any, *, background: Sequence[int] | None = None) -> np.ndarray:
    """Read a picture as a uint8 array (H, W, 3), red first.

    Args:
        picture: A path, the bytes of a file, a PIL image or a uint8 array (H, W, 3).
        background: Red, green and blue from 0 to 255 that a transparent file is laid over; None
            drops alpha, as by Pillow's `convert("RGB")`.

    Raises:
        FileNotFoundError: if there is no such file, with its name.
        DecodeError: if the bytes are no picture that can be read, with the file's name.
        ValueError: for an array of another shape or dtype, with both.
        TypeError: for anything else, and another background.
    """
    check_arguments(background=background)
    over = None if background is None else (background[0], background[1], background[2])
    if isinstance(picture, (str, os.PathLike)):
        return np.asarray(_core.read_image(picture, background=over))
    if isinstance(picture, bytes):
        return np.asarray(_core.decode_image(picture, background=over))
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(
                f"picture is an array of shape {picture.shape} and dtype {picture.dtype};"
                " expected (H, W, 3) and uint8"
            )
        return picture
    if hasattr(picture, "convert"):
        return np.asarray(picture.convert("RGB"))
    raise TypeError(
        f"picture is a {type(picture).__name__}; expected a path, bytes, a PIL image or a uint8"
        " array (H, W, 3)"
    )


#: Status of a picture that was decoded, or why it could not be.
STATUSES = ("ok", "truncated", "corrupt", "unsupported", "missing")


#: Endings of what is decoded.
DECODED = ("jpg", "png", "webp", "gif", "bmp", "tif")


# Endings of formats by the bytes that a file begins with.
_BEGINNINGS = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
)


_BRANDS = {b"avif": "avif", b"avis": "avif", b"heic": "heic", b"heix": "heic", b"mif1": "heif"}


#: Endings of files that a folder of pictures is searched for; what they hold is told by content.
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class CheckedPicture(NamedTuple):
    """What became of decoding a picture."""

    #: One of `STATUSES`.
    status: str
    #: Why it is not "ok", in words.
    reason: str = ""
    #: (height, width) in pixels, where it is "ok".
    size: tuple[int, int] | None = None


def ending_of(data: bytes) -> str:
    """Tell the usual ending of a picture's file by its first bytes; "bin" for what is unknown."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "bin")
    return next((end for begins, end in _BEGINNINGS if data.startswith(begins)), "bin")


def check_picture(stored: StoredImage) -> CheckedPicture:
    """Decode a picture and say what became of it, in the loader's words.

    "truncated" is what the decoder of JPEGs fills in: part of it is missing or damaged. The loader
    takes such pictures where `accept_truncated` says so.
    """
    try:
        data = stored if isinstance(stored, bytes) else Path(stored).read_bytes()
    except FileNotFoundError:
        return CheckedPicture("missing", "does not exist")
    except OSError as problem:
        return CheckedPicture("missing", f"cannot be read: {problem.strerror or problem}")
    ending = ending_of(data)
    try:
        if ending == "jpg":
            picture, filled = _core.decode_jpeg(data)
            if filled is not None:
                return CheckedPicture("truncated", filled)
        else:
            picture = _core.decode_image(data)
    except _core.DecodeError as problem:
        cut = "; the end of the file is missing" if _lacks_end(data, ending) else ""
        return CheckedPicture(problem.status, f"{problem}{cut}")
    return CheckedPicture("ok", "", picture.shape[:2])  # type: ignore[arg-type]


def _lacks_end(data: bytes, ending: str) -> bool:
    """Whether the mark at the end of a picture's file is not there."""
    if ending == "jpg":
        return b"\xff\xd9" not in data[-4096:]
    if ending == "png":
        return b"IEND" not in data[-64:]
    return ending == "webp" and int.from_bytes(data[4:8], "little") + 8 > len(data)
