"""Our decoder beside libjpeg-turbo's, value by value."""

import importlib
import io
from collections.abc import Iterator
from functools import partial

import numpy as np
from PIL import Image

from fiber import DecodeError, _core

from .plans import NOT_BY_SIMPLEJPEG, REFUSED, File

DAMAGES = {"truncated", "damaged"}


def instructions() -> list[str]:
    """Every set of instructions that this processor has."""
    found = []
    for name in ("scalar", "neon", "avx2", "avx512"):
        try:
            _core.decode_jpeg(b"", instructions=name)
        except DecodeError:
            found.append(name)
        except ValueError:
            continue
    return found


def by_pillow(data: bytes, divisor: int = 1) -> np.ndarray:
    """What Pillow's libjpeg-turbo gives, at a part of the size."""
    with Image.open(io.BytesIO(data)) as image:
        if divisor > 1:
            image.draft(None, (max(1, image.width // divisor), max(1, image.height // divisor)))
        return np.asarray(image.convert("RGB"))


def orientation_by_pillow(data: bytes) -> int:
    """EXIF's orientation; 1 where there is none."""
    with Image.open(io.BytesIO(data)) as image:
        return image.getexif().get(0x0112, 1)


def by_simplejpeg(data: bytes, *, strict: bool = True) -> np.ndarray | None:
    """What simplejpeg's libjpeg-turbo gives, or None for what it refuses."""
    simplejpeg = importlib.import_module("simplejpeg")
    try:
        return simplejpeg.decode_jpeg(data, strict=strict)
    except ValueError:
        return None


def is_refused(data: bytes) -> bool:
    """Whether libjpeg-turbo gives up, other than with a warning.

    Where it warned before it gave up, simplejpeg returns memory that nothing was written to.
    """
    simplejpeg = importlib.import_module("simplejpeg")
    warnings = ("Corrupt JPEG data", "Premature end", "Invalid SOS", "Inconsistent progression")
    try:
        simplejpeg.decode_jpeg(data)
    except ValueError as error:
        return not str(error).startswith(warnings)
    return False


def expected(file: File) -> np.ndarray | None:
    """The right picture; None if libjpeg-turbo refuses the file."""
    if file.features & DAMAGES:
        return None if is_refused(file.data) else by_simplejpeg(file.data, strict=False)
    return by_pillow(file.data)


def differences(
    file: File, sets: list[str], has_simplejpeg: bool, beside: bytes = b""
) -> Iterator[str]:
    """Name everything in which our decoder differs from the right picture of a file.

    It is also decoded at the same time as the file `beside`.

    Raises:
        ValueError: for a damaged file without simplejpeg, which alone gives what is filled in.
    """
    if file.features & REFUSED:
        yield from differences_of_refused(file, sets)
        return
    is_damaged = bool(file.features & DAMAGES)
    if is_damaged and not has_simplejpeg:
        raise ValueError(f"{file.name}: simplejpeg is needed to compare damaged files")
    right = expected(file)
    if has_simplejpeg and not is_damaged and not file.features & NOT_BY_SIMPLEJPEG:
        other = by_simplejpeg(file.data)
        if other is None or right is None or not np.array_equal(gray_repeated(other), right):
            yield "simplejpeg and Pillow differ"
    if not is_damaged and _core.read_jpeg_header(file.data)[2] != orientation_by_pillow(file.data):
        yield "another orientation than Pillow's"
    for name in sets:
        yield from (f"{name}: {text}" for text in differences_of(file, right, name, beside))


def differences_of_refused(file: File, sets: list[str]) -> Iterator[str]:
    """Name every way in which a file is decoded, or refused as something else than unsupported."""
    ways = {name: partial(_core.decode_jpeg, instructions=name) for name in sets}
    for name, decode in {**ways, "decode_image": _core.decode_image}.items():
        try:
            decode(file.data)
        except DecodeError as error:
            if error.status != "unsupported":
                yield f"{name}: refused as {error.status}: {error}; expected unsupported"
        else:
            yield f"{name}: decoded; expected to be refused as unsupported"


def differences_of(file: File, right: np.ndarray | None, name: str, beside: bytes) -> Iterator[str]:
    is_damaged = bool(file.features & DAMAGES)
    try:
        buffer, reason = _core.decode_jpeg(file.data, instructions=name)
    except DecodeError as error:
        if right is not None:
            yield f"refused: {error}"
        return
    found = np.asarray(buffer)
    if right is None:
        if reason is None:
            yield "taken as whole, which libjpeg-turbo refuses"
        return
    together, other_reason = _core.decode_jpeg(file.data, instructions=name, beside=beside)
    if not np.array_equal(np.asarray(together), found) or other_reason != reason:
        yield "beside another file it is decoded otherwise"
    if not np.array_equal(found, gray_repeated(right)):
        yield f"{(found != gray_repeated(right)).sum()} values differ"
    if reason is not None and not is_damaged:
        yield f"taken as damaged: {reason}"
    if reason is None and "truncated" in file.features:
        yield "taken as whole"
    if is_damaged:
        return
    stop = 1 + found.shape[0] // 2
    part, _ = _core.decode_jpeg(file.data, instructions=name, stop_row=stop)
    if not np.array_equal(np.asarray(part), found[:stop]):
        yield f"the first {stop} rows differ"
    for divisor in (2, 4, 8):
        if min(found.shape[:2]) >= divisor:
            small = np.asarray(_core.decode_jpeg(file.data, divisor=divisor, instructions=name)[0])
            if not np.array_equal(small, by_pillow(file.data, divisor)):
                yield f"values differ at 1/{divisor} of the size"


def gray_repeated(picture: np.ndarray) -> np.ndarray:
    return np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
