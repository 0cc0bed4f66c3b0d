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
    keep_alpha: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_decode_bytes: int | None = None,
) -> np.ndarray:
    """Load an image as an (H, W, 3) uint8 RGB array.

    Args:
        image: Path, encoded bytes, PIL image, or uint8 array (H, W, 3) or (H, W, 4), RGB or RGBA.
        background: RGB color, 0 to 255, that a transparent image file is composited on. None drops
            the alpha channel, as Pillow's `convert("RGB")` does.
        keep_alpha: Return an (H, W, 4) RGBA array if any pixel of the image is not opaque.
        max_pixels: maximum number of pixels of a file or of encoded bytes.
        max_decode_bytes: maximum memory in bytes for its pixels and coefficients while it is
            decoded, checked before it is allocated; None means no limit.

    Raises:
        FileNotFoundError: if the file does not exist.
        DecodeError: if the image cannot be decoded, or exceeds a limit.
        ValueError: if an array has the wrong shape or dtype, a limit is less than 1, or both
            `background` and `keep_alpha` are given.
        TypeError: if `image` has an unsupported type, or `background` or a limit is invalid.
    """
    check_arguments(
        background=background,
        keep_alpha=keep_alpha,
        max_pixels=max_pixels,
        max_decode_bytes=max_decode_bytes,
    )
    options: dict[str, Any] = {
        "background": None if background is None else tuple(background),
        "keep_alpha": keep_alpha,
        "max_pixels": max_pixels,
        "max_decode_bytes": max_decode_bytes,
    }
    if isinstance(image, (str, os.PathLike)):
        return np.asarray(_core.read_image(image, **options))
    if isinstance(image, bytes):
        return np.asarray(_core.decode_image(image, **options))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
            raise ValueError(
                f"image is an array of shape {image.shape} and dtype {image.dtype};"
                " expected shape (H, W, 3), or (H, W, 4) with alpha, and dtype uint8"
            )
        return image if keep_alpha else _without_alpha(image)
    if hasattr(image, "convert"):
        if not (keep_alpha and image.has_transparency_data):
            return np.asarray(image.convert("RGB"))
        rgba = np.asarray(image.convert("RGBA"))
        return rgba if (rgba[..., 3] < 255).any() else _without_alpha(rgba)
    raise TypeError(
        f"image is a {type(image).__name__}; expected a path, bytes, a PIL image or a uint8"
        " array (H, W, 3)"
    )


def _without_alpha(image: np.ndarray) -> np.ndarray:
    return image if image.shape[2] == 3 else np.ascontiguousarray(image[..., :3])
