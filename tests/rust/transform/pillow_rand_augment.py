"""METER's operations of RandAugment, written with Pillow: the reference of tests and of a bench."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps


def solarize_add(image: Image.Image, addition: float) -> Image.Image:
    """Add a level, then invert values from 128 on."""
    sums = np.clip(np.asarray(image).astype(int) + addition, 0, 255)
    return ImageOps.solarize(Image.fromarray(sums.astype(np.uint8)), 128)


def warped(image: Image.Image, map_: tuple[float, ...]) -> Image.Image:
    """Map output pixels to the nearest source pixels."""
    return image.transform(image.size, Image.Transform.AFFINE, map_)


OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Rotate": lambda image, degrees: image.rotate(degrees),
    "Posterize": lambda image, bits: ImageOps.posterize(image, max(1, int(bits))),
    "Solarize": lambda image, threshold: ImageOps.solarize(image, threshold),
    "SolarizeAdd": solarize_add,
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "ShearX": lambda image, factor: warped(image, (1, factor, 0, 0, 1, 0)),
    "ShearY": lambda image, factor: warped(image, (1, 0, 0, factor, 1, 0)),
    "TranslateX": lambda image, pixels: warped(image, (1, 0, pixels, 0, 1, 0)),
    "TranslateY": lambda image, pixels: warped(image, (1, 0, 0, 0, 1, pixels)),
}


def apply(image: Image.Image, operation: str, argument: float | None) -> Image.Image:
    """Apply an operation with a signed argument, which some operations ignore."""
    return OPERATIONS[operation](image, 0.0 if argument is None else argument)
