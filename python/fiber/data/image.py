"""Load an image from a path, bytes, an open file, a PIL image or an array."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fiber import _core
from fiber.data.image_file import (
    DOWNLOAD_SECONDS,
    MAX_DOWNLOAD_BYTES,
    MAX_PIXELS,
    check_not_url,
    decode_advice,
    is_url,
    missing_advice,
)
from fiber.data.loader_config import check_arguments
from fiber.messages import shown

#: What an image may be, for messages.
EXPECTED = (
    "expected a path, bytes, a file opened in binary mode, a PIL image or a uint8 array (H, W, 3)"
)
#: What Python callers may do with a URL.
_ALLOW = ", or load it by fiber.data.load_image(url, allow_url=True) and pass the array"
#: Kinds of dtypes of arrays that hold paths, or other objects.
TEXT_KINDS = "OSUT"
#: Start of the modes of PIL images with 16-bit values, which end with the byte order.
_SIXTEEN_BITS = "I;16"
#: Modes of PIL images without a fixed range of values, and the values of their pixels.
_NO_RANGE = {"I": "32-bit integers", "F": "floating-point numbers"}


def load_image(
    image: Any,
    *,
    background: Sequence[int] | None = None,
    keep_alpha: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_decode_bytes: int | None = None,
    allow_url: bool = False,
    max_download_bytes: int = MAX_DOWNLOAD_BYTES,
    timeout_seconds: float = DOWNLOAD_SECONDS,
) -> np.ndarray:
    """Load an image as an (H, W, 3) uint8 RGB array.

    Args:
        image: Path, encoded bytes, file opened in binary mode, PIL image, or uint8 array (H, W, 3)
            or (H, W, 4), RGB or RGBA. Of 16-bit PIL images, the upper 8 bits are kept, as of files.
        background: RGB color, 0 to 255, that a transparent image file is composited on. None drops
            the alpha channel, as Pillow's `convert("RGB")` does.
        keep_alpha: Return an (H, W, 4) RGBA array if any pixel of the image is not opaque.
        max_pixels: maximum number of pixels of a file or of encoded bytes.
        max_decode_bytes: maximum memory in bytes for its pixels and coefficients while it is
            decoded, checked before it is allocated; None means no limit.
        allow_url: Fetch an image of which the URL is given, of http or https. Only public addresses
            are connected to, also by redirects: those of this machine and of private networks are
            refused. Proxies that the environment names are not used.
        max_download_bytes: maximum number of bytes to fetch.
        timeout_seconds: maximum time of fetching, redirects included.

    Raises:
        FileNotFoundError: if the file does not exist.
        DecodeError: if the image cannot be decoded, or exceeds a limit.
        ValueError: if an array has the wrong shape or dtype, a PIL image has 32-bit integers or
            floating-point numbers, `image` is a URL that is not allowed, or one of more than
            `max_download_bytes`, a limit is less than 1, or both `background` and `keep_alpha` are
            given.
        ConnectionError: if the host of a URL cannot be reached, or answers with an error.
        TimeoutError: if fetching takes longer than `timeout_seconds`.
        TypeError: if `image` has an unsupported type, or `background` or a limit is invalid.
    """
    check_arguments(
        background=background,
        keep_alpha=keep_alpha,
        max_pixels=max_pixels,
        max_decode_bytes=max_decode_bytes,
        allow_url=allow_url,
        max_download_bytes=max_download_bytes,
        timeout_seconds=timeout_seconds,
    )
    options: dict[str, Any] = {
        "background": None if background is None else tuple(background),
        "keep_alpha": keep_alpha,
        "max_pixels": max_pixels,
        "max_decode_bytes": max_decode_bytes,
    }
    if isinstance(image, (str, os.PathLike)):
        if not (allow_url and is_url(image)):
            check_not_url(image, "image", _ALLOW)
            return _read_file(image, options)
        # Of the standard library, but not needed for files.
        from fiber.data.storage.image_url import fetch_image

        image = fetch_image(
            os.fspath(image), max_bytes=max_download_bytes, timeout_seconds=timeout_seconds
        )
    image = read_open_file(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
        try:
            return np.asarray(_core.decode_image(data, **options))
        except _core.DecodeError as error:
            raise _with_advice(error, data) from None
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
            raise wrong_array(image, "(H, W, 4) with alpha")
        return image if keep_alpha else _without_alpha(image)
    if hasattr(image, "convert"):
        return _from_pil(image, keep_alpha)
    raise TypeError(f"image is a {type(image).__name__}; {EXPECTED}{_tensor_hint(image)}")


def read_open_file(image: Any) -> Any:
    """Return the bytes of an open file, from its start if it can seek; return others unchanged.

    Raises:
        TypeError: if the file is open in text mode.
        ValueError: if the file is closed, or opened for writing only.
    """
    # PIL images have no `read`; Pillow reads open files from the start, too.
    if not hasattr(image, "read"):
        return image
    name = f" ({shown(image.name)})" if isinstance(getattr(image, "name", None), str) else ""
    if isinstance(image, io.TextIOBase):
        raise TypeError(f'image is a file opened in text mode{name}; open it with "rb"')
    if getattr(image, "closed", False):
        raise ValueError(f"image is a closed file{name}; pass its path, or a file that is open")
    if not getattr(image, "readable", lambda: True)():
        raise ValueError(f'image is a file opened for writing{name}; open it with "rb"')
    if getattr(image, "seekable", bool)():
        image.seek(0)
    return bytes(image.read())


def wrong_array(array: np.ndarray, other_shape: str) -> ValueError:
    """Make the error for an array that is no image, with a way to convert it to one.

    `other_shape` is the shape that is accepted beside (H, W, 3).
    """
    if array.dtype.kind in TEXT_KINDS:
        what = "object" if array.dtype.kind == "O" else "string"
        if not array.ndim:
            return ValueError(
                f"image is an array of one {what}, not of pixels; if that is a path, pass"
                " array.item()"
            )
        return ValueError(
            f"image is an array of {what}s of shape {array.shape}, not of pixels; if these are"
            " paths, pass array.ravel().tolist()"
        )
    return ValueError(
        f"image is an array of shape {array.shape} and dtype {array.dtype}; expected shape"
        f" (H, W, 3), or {other_shape}, and dtype uint8{_array_hint(array)}"
    )


def _array_hint(array: np.ndarray) -> str:
    """Say how to convert an array to an image, by its dtype and then its shape."""
    shape, kind = array.shape, array.dtype.kind
    steps = []
    if kind == "f":
        steps.append('scale its values to 0 to 255 and convert them by .astype("uint8")')
    elif kind == "b":
        steps.append('convert it by .astype("uint8") * 255')
    elif array.dtype == np.uint16:
        # As of 16-bit files.
        steps.append('keep the upper 8 of 16 bits by (array >> 8).astype("uint8")')
    elif kind in "iu" and array.dtype != np.uint8:
        steps.append('convert its values, if these are 0 to 255, by .astype("uint8")')
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 1):
        steps.append(
            "repeat its gray values by np.stack([gray] * 3, axis=-1), gray of shape (H, W)"
        )
    elif len(shape) == 3 and shape[0] in (3, 4) and shape[2] not in (3, 4):
        steps.append("move its channels to the end by .transpose(1, 2, 0)")
    return f"; {', and '.join(steps)}" if steps else ""


def _tensor_hint(image: Any) -> str:
    """Say how to convert a tensor, of torch, to an array; empty for others."""
    if not (hasattr(image, "permute") and hasattr(image, "numpy")):
        return ""
    return (
        "; of a tensor (3, H, W) with values from 0 to 255, pass"
        " tensor.permute(1, 2, 0).byte().cpu().numpy()"
    )


def _read_file(path: str | os.PathLike[str], options: dict[str, Any]) -> np.ndarray:
    if not os.fspath(path):
        raise ValueError("image is an empty path; expected the path of an image file")
    try:
        return np.asarray(_core.read_image(path, **options))
    except IsADirectoryError as error:
        reason = "this is a folder, not an image file; pass a list of the image files in it"
        raise IsADirectoryError(error.errno, reason, os.fspath(path)) from None
    except FileNotFoundError as error:
        reason = f"{error.strerror}; {missing_advice(path)}"
        if not Path(os.fsdecode(path)).suffix:
            reason += "; a text comes after the image, as in model.answer(image, question)"
        raise FileNotFoundError(error.errno, reason, os.fspath(path)) from None
    except _core.DecodeError as error:
        with contextlib.suppress(OSError):
            data = Path(path).read_bytes()
            raise _with_advice(error, data, os.fspath(path)) from None
        raise


def _with_advice(
    error: _core.DecodeError, data: bytes, name: str | bytes = "IN"
) -> _core.DecodeError:
    """Add how to go on to the error of an image that cannot be decoded."""
    advised = _core.DecodeError(f"{error}; {decode_advice(data, error, os.fsdecode(name))}")
    advised.status = error.status
    return advised


def _from_pil(image: Any, keep_alpha: bool) -> np.ndarray:
    """Convert a PIL image to RGB, or RGBA, with the values that its file would have."""
    # Older versions of Pillow open 16-bit PNG files as mode I.
    if image.mode.startswith(_SIXTEEN_BITS) or (image.mode == "I" and image.format == "PNG"):
        return _from_sixteen_bits(image, keep_alpha)
    if image.mode in _NO_RANGE:
        as_words = ', or image.convert("I;16") if they are 16-bit values' * (image.mode == "I")
        raise ValueError(
            f"image is a PIL image of mode {image.mode!r}, whose {_NO_RANGE[image.mode]} have no"
            " fixed range; scale them to 0 to 255 in a numpy array and pass"
            f' Image.fromarray(array.astype("uint8")){as_words}'
        )
    mode = "RGBA" if keep_alpha and image.has_transparency_data else "RGB"
    try:
        converted = np.asarray(image.convert(mode))
    except ValueError as error:
        raise ValueError(
            f"image is a PIL image of mode {image.mode!r}, which Pillow does not convert to {mode}"
            f" ({error}); convert it to another mode first"
        ) from error
    if mode == "RGB" or (converted[..., 3] < 255).any():
        return converted
    return _without_alpha(converted)


def _from_sixteen_bits(image: Any, keep_alpha: bool) -> np.ndarray:
    """Keep the upper 8 of 16 bits, which Pillow's `convert` clips at 255 instead."""
    values = np.asarray(image)
    gray = (values >> 8).clip(0, 255).astype(np.uint8)
    channels, transparent = [gray] * 3, image.info.get("transparency")
    if keep_alpha and isinstance(transparent, int) and (values == transparent).any():
        channels.append(np.where(values == transparent, 0, 255).astype(np.uint8))
    return np.stack(channels, axis=-1)


def _without_alpha(image: np.ndarray) -> np.ndarray:
    return image if image.shape[2] == 3 else np.ascontiguousarray(image[..., :3])
