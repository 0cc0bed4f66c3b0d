"""Image files: formats by content, limits of decoding, and a check that an image can be decoded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from fiber import _core
from fiber.data.record import StoredImage
from fiber.messages import shown

#: Default of `max_pixels`, the number of pixels that Pillow rejects.
MAX_PIXELS = 178_956_970
#: Decoding statuses of an image.
STATUSES = ("ok", "truncated", "corrupt", "unsupported", "missing")

# Magic numbers and extensions of formats.
_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"II+\0", "tif"),
    (b"MM\0+", "tif"),
)
# Extensions of ISO media files by brand.
_BRANDS = {b"avif": "avif", b"avis": "avif", b"heic": "heic", b"heix": "heic", b"mif1": "heif"}
#: Extensions of image files in a folder; the actual format is detected from the content.
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# Matches a URL, also after `Path` has removed one of its slashes.
_URL = re.compile(r"(?:https?|ftp|s3|gs|hf):/|[A-Za-z][A-Za-z0-9+.-]+://")


class DecodeLimits(NamedTuple):
    """Limits of decoding one image file; see `fiber.data.load_image`."""

    max_pixels: int = MAX_PIXELS
    max_decode_bytes: int | None = None


DEFAULT_LIMITS = DecodeLimits()


class CheckedImage(NamedTuple):
    """Result of decoding an image."""

    #: One of `STATUSES`.
    status: str
    #: Why the status is not "ok".
    reason: str = ""
    #: (height, width) in pixels if "ok".
    size: tuple[int, int] | None = None


def check_not_url(path: str | os.PathLike[str], what: str) -> None:
    """Raise ValueError if the path of an image or model, named by `what`, is a URL."""
    if _URL.match(text := os.fspath(path)):
        raise ValueError(
            f"{what} {shown(text)} is a URL, and {what}s are not fetched; download it first, and"
            " pass the path of the file"
        )


def extension_of(data: bytes) -> str:
    """Return the extension of an image format based on its magic number ("bin" if unknown)."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "bin")
    return next((end for magic, end in _MAGIC if data.startswith(magic)), "bin")


def check_image(
    stored: StoredImage, *, max_pixels: int = MAX_PIXELS, max_decode_bytes: int | None = None
) -> CheckedImage:
    """Decode an image and return the status that the loader would report with these limits.

    The status "truncated" means a JPEG with missing or damaged data; see `accept_truncated`.
    """
    try:
        data = stored if isinstance(stored, bytes) else Path(stored).read_bytes()
    except FileNotFoundError:
        return CheckedImage("missing", "does not exist")
    except OSError as problem:
        return CheckedImage("missing", f"cannot be read: {problem.strerror or problem}")
    extension, filled = extension_of(data), None
    limits: dict[str, Any] = {"max_pixels": max_pixels, "max_decode_bytes": max_decode_bytes}
    try:
        if extension == "jpg":
            image, filled = _core.decode_jpeg(data, **limits)
        else:
            image = _core.decode_image(data, **limits)
    except _core.DecodeError as problem:
        lacks_end = {
            "jpg": b"\xff\xd9" not in data[-4096:],
            "png": b"IEND" not in data[-64:],
            "webp": int.from_bytes(data[4:8], "little") + 8 > len(data),
        }
        cut = "; the end of the file is missing" if lacks_end.get(extension) else ""
        return CheckedImage(problem.status, f"{problem}{cut}")
    if filled is not None:
        return CheckedImage("truncated", filled)
    return CheckedImage("ok", "", image.shape[:2])  # type: ignore[arg-type]
