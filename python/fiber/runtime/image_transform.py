"""Preprocessing of images, as metadata.json describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fiber import _core
from fiber.config_io import check_ranges, from_dict
from fiber.data import ImageTransform, load_image
from fiber.messages import shown

#: Arguments of `ImageTransform` that inference does not set.
_AUGMENTATIONS = {
    "color_jitter",
    "crop_probability",
    "crop_scale",
    "flip_probability",
    "rand_augment",
}
#: Constructors of transforms of inference.
_NAMES = ("squash", "center_crop", "shorter_side")
#: Range of sizes in pixels, and of means and standard deviations.
_PIXELS, _MEAN, _STD = (1, 2**16), (-1e3, 1e3), (1e-6, 1e6)
#: Maximum number of sizes.
_MAX_SIZES = 100


@dataclass(frozen=True, kw_only=True)
class _Arguments:
    """Arguments of the constructors; which ones a constructor takes is its own matter."""

    size: int = 1
    sizes: tuple[int, ...] = ()
    max_size: int = 1
    divisor: int = 1
    filter: Literal["bilinear", "bicubic"] = "bilinear"
    resize: Literal["exact", "fast"] = "exact"
    alpha: Literal["drop", "premultiply"] = "drop"
    channel_order: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.sizes) > _MAX_SIZES:
            raise ValueError(
                f"{_ARGUMENTS}sizes: expected at most {_MAX_SIZES}, got {len(self.sizes)}"
            )
        pixels = dict.fromkeys(("size", "sizes", "max_size", "divisor"), _PIXELS)
        check_ranges(self, _ARGUMENTS, {**pixels, "mean": _MEAN, "std": _STD})


#: Prefix of the arguments in messages.
_ARGUMENTS = "image_transform.arguments."


def describe_transform(transform: ImageTransform) -> dict[str, Any]:
    """Return the constructor of a transform of inference and its arguments, for JSON.

    Raises:
        ValueError: if the transform augments images.
    """
    fields = dict(transform.describe())
    name = fields.pop("kind")
    arguments = {key: value for key, value in fields.items() if key not in _AUGMENTATIONS}
    described = {"name": name, "arguments": arguments}
    if name not in _NAMES or repr(read_transform(described)) != repr(transform):
        raise ValueError(f"{transform!r} augments images; expected a transform of inference")
    return described


def read_transform(described: Any, where: str = "image_transform") -> ImageTransform:
    """Make a transform from the output of `describe_transform`, the field `where` of metadata.json.

    Raises:
        ValueError: if it is not such an output.
    """
    if not isinstance(described, Mapping):
        raise ValueError(f"{where}: expected an object, got {shown(described)}")
    name, arguments = described.get("name"), described.get("arguments")
    if not isinstance(name, str) or name not in _NAMES or not isinstance(arguments, Mapping):
        raise ValueError(
            f"{where}: expected a name, one of {', '.join(_NAMES)}, and arguments, got"
            f" {shown(described)}"
        )
    checked = from_dict(_Arguments, dict(arguments), where=f"{where}.arguments.")
    try:
        return getattr(ImageTransform, name)(**{each: getattr(checked, each) for each in arguments})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def prepare_image(image: Any, transform: ImageTransform) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode an image and transform it.

    Args:
        image: see `fiber.data.load_image`.
        transform: output of `read_transform`.

    Returns:
        A (1, 3, H, W) float32 array, padded as the model needs it, and its (height, width) without
        padding.
    """
    array = load_image(image, keep_alpha=transform.keeps_alpha)
    pixels, _, size = _core.apply_transform(array, transform)
    return np.asarray(pixels)[None], size
