"""Image files: formats by content, limits of decoding, and a check that an image can be decoded."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from fiber import _core
from fiber.data.record import StoredImage
from fiber.messages import printable, shown, shown_names

#: Default of `max_pixels`, the number of pixels that Pillow rejects.
MAX_PIXELS = 178_956_970
#: Default limits of fetching an image, in bytes and, with redirects, in seconds.
MAX_DOWNLOAD_BYTES = 64 << 20
DOWNLOAD_SECONDS = 30.0
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

_URL = re.compile(r"(?:https?|ftp|s3|gs|hf):/|[A-Za-z][A-Za-z0-9+.-]+://")

# Matches the beginning of files that are often taken for images, and what to do instead.
_NO_IMAGES = (
    (
        re.compile(rb"\s*(?:<!doctype html|<html)", re.IGNORECASE),
        "it is an HTML page, such as that of a download that failed; download the image itself",
    ),
    (re.compile(rb"version https://git-lfs"), "it is a pointer of Git LFS; run `git lfs pull`"),
    (
        re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?<svg", re.IGNORECASE),
        "it is an SVG drawing; convert it to a PNG file first",
    ),
    (
        re.compile(rb"(?s:.{4}ftyp(?:isom|iso\d|mp4\d|avc1|M4V |qt  )|\x1aE\xdf\xa3|RIFF.{4}AVI )"),
        "it is a video; pass its frames, as from fiber.data.video_frames, or ask `fiber ground`,"
        " `detect` or `segment`, which take videos",
    ),
)
# Number of bytes that these patterns see.
_BEGINNING = 1000
# Number of names in a folder that are compared with that of a missing image, and listed.
_MAX_NEIGHBORS, _MAX_LISTED = 1000, 3
# Maximum number of characters of a name in a hint.
_MAX_NAME = 80
#: Maximum length of a path in a message.
_MAX_PATH = 1000


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


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a URL, also after `Path` has removed one of its slashes."""
    return _URL.match(os.fspath(path)) is not None


def check_not_url(path: str | os.PathLike[str], what: str, advice: str = "") -> None:
    """Raise ValueError if the path of an image or model, named by `what`, is a URL."""
    if is_url(path):
        raise ValueError(
            f"{what} {shown(os.fspath(path))} is a URL, and {what}s are not fetched; download it"
            f" first, and pass the path of the file{advice}"
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
        cut = "; the end of the file is missing" if _lacks_end(data) else ""
        return CheckedImage(problem.status, f"{problem}{cut}")
    if filled is not None:
        return CheckedImage("truncated", filled)
    return CheckedImage("ok", "", image.shape[:2])  # type: ignore[arg-type]


def _lacks_end(data: bytes) -> bool:
    """Return whether the end of a JPEG, PNG or WebP file is missing."""
    lacks_end = {
        "jpg": b"\xff\xd9" not in data[-4096:],
        "png": b"IEND" not in data[-64:],
        "webp": int.from_bytes(data[4:8], "little") + 8 > len(data),
    }
    return lacks_end.get(extension_of(data), False)


def decode_advice(data: bytes, problem: _core.DecodeError, name: str = "IN") -> str:
    """Say how to go on if the content of an image file, called `name`, cannot be decoded."""
    if "expected at most" in str(problem):
        return "pass a smaller image, or raise the limit"
    for pattern, advice in _NO_IMAGES:
        if pattern.match(data[:_BEGINNING]):
            return advice
    if not data:
        return "copy or download it again"
    if problem.status == "unsupported":
        new = printable(os.fspath(Path(name).with_suffix(".png")), _MAX_NAME)
        return f"convert it first, as by ImageMagick: `magick {printable(name, _MAX_NAME)} {new}`"
    if extension_of(data) == "bin":
        return "convert it, if it is an image of another format, or pass another file"
    if _lacks_end(data):
        return (
            "copy or download it again; to use what is left, let Pillow read it and save it again"
            " (PIL.ImageFile.LOAD_TRUNCATED_IMAGES = True)"
        )
    return (
        "the file is damaged: copy or download it again, or open it in another program and save it"
    )


def missing_advice(path: str | os.PathLike[str]) -> str:
    """Say how to go on if an image file does not exist: names like its own, or what there is."""
    path = Path(path)
    if path.parts[:1] == ("~",):
        return "'~' is not expanded; pass the whole path (os.path.expanduser)"
    folders, images = [], []
    try:
        with os.scandir(path.parent) as entries:
            for each in itertools.islice(entries, _MAX_NEIGHBORS):
                is_image = Path(each.name).suffix.lower() in ENDINGS
                (images if is_image else folders if each.is_dir() else []).append(each.name)
    except (OSError, ValueError):
        return f"there is no folder {shown(os.fspath(path.parent))}; check the path"
    # Compared without suffixes, since these are alike.
    stems = {Path(name).stem.lower(): name for name in sorted(images, reverse=True)}
    stems |= {} if path.suffix else {name.lower(): name for name in folders}
    close = difflib.get_close_matches(path.stem.lower()[:_MAX_NAME], stems, n=2, cutoff=0.65)
    if close:
        near = (printable(os.fspath(path.with_name(stems[stem])), _MAX_PATH) for stem in close)
        return f"did you mean {' or '.join(near)}?"
    folder = "the current folder" if path.parent == Path() else shown(os.fspath(path.parent))
    if not images:
        return f"there are no images in {folder}; check the path"
    names = shown_names(sorted(images), _MAX_LISTED)
    return f"the images in {folder} are {names}; check the path"
