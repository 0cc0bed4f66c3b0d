"""Load an image from a path, bytes, a PIL image or an array."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from fiber import _core
from fiber.data.image_file import MAX_PIXELS
from fiber.data.loader_config import check_arguments


def load_image(
    image: Any,
    *,
    background: Sequence[int] | None = None,
    max_pixels: int = MAX_PIXELS,
    max_decode_bytes: int | None = None,
) -> np.ndarray:
    """Load an image as an (H, W, 3) uint8 RGB array.

    Args:
        image: Path, encoded bytes, PIL image or uint8 array (H, W, 3).
        background: RGB color, 0 to 255, that a transparent image file is composited on. None drops
            the alpha channel, as Pillow's `convert("RGB")` does.
        max_pixels: maximum number of pixels of a file or of encoded bytes.
        max_decode_bytes: maximum memory in bytes for its pixels and coefficients while it is
            decoded, checked before it is allocated; None means no limit.

    Raises:
        FileNotFoundError: if the file does not exist.
        DecodeError: if the image cannot be decoded, or exceeds a limit.
        ValueError: if an array has the wrong shape or dtype, or a limit is less than 1.
        TypeError: if `image` has an unsupported type, or `background` or a limit is invalid.
    """
    check_arguments(background=background, max_pixels=max_pixels, max_decode_bytes=max_decode_bytes)
    options: dict[str, Any] = {
        "background": None if background is None else tuple(background),
        "max_pixels": max_pixels,
        "max_decode_bytes": max_decode_bytes,
    }
    if isinstance(image, (str, os.PathLike)):
        return np.asarray(_core.read_image(image, **options))
    if isinstance(image, bytes):
        return np.asarray(_core.decode_image(image, **options))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"image is an array of shape {image.shape} and dtype {image.dtype};"
                " expected shape (H, W, 3) and dtype uint8"
            )
        return image
    if hasattr(image, "convert"):
        return np.asarray(image.convert("RGB"))
    raise TypeError(
        f"image is a {type(image).__name__}; expected a path, bytes, a PIL image or a uint8"
        " array (H, W, 3)"
    )
