"""Pictures that a user hands in -> arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from fiber import _core
from fiber.data.loader_config import check_arguments


def load_image(picture: Any, *, background: Sequence[int] | None = None) -> np.ndarray:
    """Read a picture as a uint8 array (H, W, 3), red first.

    Args:
        picture: A path, the bytes of a file, a PIL image or a uint8 array (H, W, 3).
        background: Red, green and blue from 0 to 255 that a transparent file is laid over; None
            drops alpha, as by Pillow's `convert("RGB")`.

    Raises:
        FileNotFoundError: if there is no such file, with its name.
        DecodeError: if the bytes are no picture that can be read, with the file's name.
        ValueError: for an array of another shape or dtype, with both.
        TypeError: for anything else, and another background.
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
