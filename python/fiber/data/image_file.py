"""Recognize image files by their content, and check that they can be decoded."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fiber import _core
from fiber.data.record import StoredImage

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
