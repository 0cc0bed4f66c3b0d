"""Load an image from a path, bytes, a PIL image or an array."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from fiber import _core
from fiber.data.loader_config import check_arguments


def load_image(image: Any, *, background: Sequence[int] | None = None) -> np.ndarray:
    """Load an image as an (H, W, 3) uint8 RGB array.

    Args:
        image: Path, encoded bytes, PIL image or uint8 array (H, W, 3).
        background: RGB color, 0 to 255, that a transparent image file is composited on. None drops
            the alpha channel, as Pillow's `convert("RGB")` does.

    Raises:
        FileNotFoundError: if the file does not exist.
        DecodeError: if the image cannot be decoded.
        ValueError: if an array has the wrong shape or dtype.
        TypeError: if `image` has an unsupported type, or `background` is invalid.
    """
    check_arguments(background=background)
    over: Any = None if background is None else tuple(background)
    if isinstance(image, (str, os.PathLike)):
        return np.asarray(_core.read_image(image, background=over))
    if isinstance(image, bytes):
        return np.asarray(_core.decode_image(image, background=over))
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
