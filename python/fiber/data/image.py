"""Load an image from a path, bytes, PIL or an array."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from fiber import _core
from fiber.data.loader_config import check_arguments


def load_image(picture: Any, *, background: Sequence[int] | None = None) -> np.ndarray:
    """Load an image as a uint8 array (H, W, 3), RGB.

    Args:
        picture: Path, encoded bytes, PIL image or uint8 array (H, W, 3).
        background: RGB color, 0 to 255, that a transparent file is composited on; None drops alpha,
            as Pillow's `convert("RGB")` does.

    Raises:
        FileNotFoundError: if the file does not exist.
        DecodeError: if the image cannot be decoded, with the file's name.
        ValueError: for an array of another shape or dtype, with both.
        TypeError: for any other type, or an invalid background.
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
