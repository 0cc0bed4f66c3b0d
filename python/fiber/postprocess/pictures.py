"""Images that results are drawn on."""

from __future__ import annotations

import io
import math
import os
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from fiber.data import load_image

if TYPE_CHECKING:
    from PIL.Image import Image

#: Path, encoded bytes, or uint8 array (H, W, 3).
Picture: TypeAlias = "str | os.PathLike[str] | bytes | np.ndarray"
#: Shorter side, in pixels, to which small images are enlarged before drawing.
MIN_DRAWN_SIDE = 384
#: Maximum longer side of enlarged images, in pixels.
MAX_DRAWN_SIDE = 4096


def open_picture(owner: str, picture: Picture | None, size: tuple[int, int]) -> Image:
    """Open the image of a result.

    Args:
        owner: class of the result, for messages.
        picture: the image.
        size: (height, width) of the result in pixels.

    Raises:
        ValueError: if the image is missing or its size is another one.
    """
    from PIL import Image as PilImage
    from PIL import ImageOps

    if picture is None:
        raise ValueError(f"{owner}: no image to draw on; pass picture= when creating it")
    if isinstance(picture, np.ndarray):
        image = PilImage.fromarray(picture)
    else:
        source = io.BytesIO(picture) if isinstance(picture, bytes) else picture
        image = PilImage.open(source)
        ImageOps.exif_transpose(image, in_place=True)
    if (image.height, image.width) != size:
        what = {"Detections": "boxes"}.get(owner, "masks")
        raise ValueError(
            f"{owner}: the image has {image.width} x {image.height} pixels; expected"
            f" {size[1]} x {size[0]}, the image size of the {what}"
        )
    # `convert` would clip 16-bit values.
    return PilImage.fromarray(load_image(image))


def enlarged(image: Image) -> tuple[Image, int]:
    """Enlarge a small image for drawing; return it and the scale."""
    scale = math.ceil(MIN_DRAWN_SIDE / min(image.size))
    scale = max(1, min(scale, MAX_DRAWN_SIDE // max(image.size)))
    return image.resize((image.width * scale, image.height * scale)), scale
