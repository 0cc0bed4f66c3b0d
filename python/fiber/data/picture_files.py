"""What bytes of a picture are, by their content, and whether they can be decoded."""

from __future__ import annotations

import os
from typing import NamedTuple

from fiber import _core
from fiber.data.images import load_image
from fiber.data.records import StoredImage

#: Status of a picture that was decoded, or why it could not be.
STATUSES = ("ok", "truncated", "corrupt", "unsupported", "missing")
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
    """Decode a picture and say what became of it."""
    try:
        height, width = load_image(stored).shape[:2]
    except FileNotFoundError:
        return CheckedPicture("missing", "does not exist")
    except OSError as problem:
        return CheckedPicture("missing", f"cannot be read: {problem.strerror or problem}")
    except ValueError as problem:
        return CheckedPicture(_status_of(stored), _without_path(stored, str(problem)))
    return CheckedPicture("ok", "", (height, width))


def _without_path(stored: StoredImage, said: str) -> str:
    return said if isinstance(stored, bytes) else said.removeprefix(f"{os.fspath(stored)}: ")


def _status_of(stored: StoredImage) -> str:
    """Tell by its bytes why a picture cannot be decoded."""
    if not isinstance(stored, bytes):
        try:
            with open(stored, "rb") as file:  # noqa: PTH123 (a path of any kind)
                stored = file.read()
        except OSError:
            return "missing"
    ending = ending_of(stored)
    if not stored:
        return "truncated"
    try:
        _core.probe_image(stored)
    except ValueError:
        if ending not in ("jpg", "png", "webp"):
            return "unsupported" if ending != "bin" else "corrupt"
    return "truncated" if _lacks_end(stored, ending) else "corrupt"


def _lacks_end(data: bytes, ending: str) -> bool:
    """Whether the mark at the end of a picture's file is not there."""
    if ending == "jpg":
        return b"\xff\xd9" not in data[-4096:]
    if ending == "png":
        return b"IEND" not in data[-64:]
    return ending == "webp" and int.from_bytes(data[4:8], "little") + 8 > len(data)
