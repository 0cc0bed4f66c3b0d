"""Pictures that a user hands in -> arrays."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fiber import _core


def load_image(picture: Any) -> np.ndarray:
    """Read a picture as a uint8 array (H, W, 3), red first.

    Args:
        picture: A path, the bytes of a file, a PIL image or a uint8 array (H, W, 3).

    Raises:
        FileNotFoundError: if there is no such file, with its name.
        DecodeError: if the bytes are no picture that can be read, with the file's name.
        ValueError: for an array of another shape or dtype, with both.
        TypeError: for anything else.
    """
    if isinstance(picture, (str, os.PathLike)):
        return np.asarray(_core.read_image(picture))
    if isinstance(picture, bytes):
        return np.asarray(_core.decode_image(picture))
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
