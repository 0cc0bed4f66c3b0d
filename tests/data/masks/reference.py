"""What masks of transformed images must be: pycocotools decodes, Pillow crops and resizes.

The random numbers and choices of a transform are those of docs/loader.md, computed here again.
"""

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from fiber.data import IdMap, PackedMask, Polygons, Rle

_GOLDEN, _ALL = 0x9E3779B97F4A7C15, 2**64 - 1
_IMAGE = 0x100


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _ALL
    return z ^ (z >> 31)


class ImageRng:
    """SplitMix64 (Steele et al. 2014), seeded for the first image of a sample."""

    def __init__(self, seed: int, epoch: int, index: int) -> None:
        state = _GOLDEN
        for part in (seed, epoch, index, _IMAGE):
            state = _mix(((state + _GOLDEN) & _ALL) ^ _mix((part + _GOLDEN) & _ALL))
        self._state = state

    def bits(self) -> int:
        self._state = (self._state + _GOLDEN) & _ALL
        return _mix(self._state)

    def unit(self) -> float:
        return (self.bits() >> 11) / 2**53

    def range(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def index(self, bound: int) -> int:
        while True:
            product = self.bits() * bound
            if (product & _ALL) >= (2**64 - bound) % bound:
                return product >> 64


@dataclass
class Sampled:
    """A sampled transform: (top, left, height, width) of the crop and of the window."""

    crop: tuple[int, int, int, int]
    resized: tuple[int, int]
    window: tuple[int, int, int, int]
    flip: bool


def sample(settings: dict[str, Any], size: tuple[int, int], rng: ImageRng) -> Sampled:
    """Sample a transform, given by `ImageTransform.describe`, for an image of (height, width)."""
    height, width = size
    kind, crop = settings["kind"], (0, 0, height, width)
    window = None
    if kind == "squash":
        resized = (settings["size"],) * 2
    elif kind == "scale_jitter":
        side, scale = settings["size"], rng.range(*settings["scale"])
        ratio = min(side * scale / height, side * scale / width)
        resized = tuple(max(1, round(length * ratio)) for length in size)
        at, cut = rng.unit(), tuple(min(length, side) for length in resized)
        offsets = tuple(
            round((length - own) * at) for length, own in zip(resized, cut, strict=True)
        )
        window = (*offsets, *cut)
    elif kind == "center_crop":
        side = settings["size"]
        resized = _shorter_side(height, width, side, 2**62)
        window = (_center(resized[0] - side), _center(resized[1] - side), side, side)
    elif kind == "random_resized_crop":
        crop = _random_crop(height, width, settings["scale"], settings["ratio"], rng)
        resized = (settings["size"],) * 2
    else:
        shorter = settings["sizes"][rng.index(len(settings["sizes"]))]
        if settings["crop_probability"] > 0 and rng.unit() < settings["crop_probability"]:
            own = width / height
            ratios = (3 / 4 * own, 4 / 3 * own)
            crop = _random_crop(height, width, settings["crop_scale"], ratios, rng)
        resized = _shorter_side(crop[2], crop[3], shorter, settings["max_size"])
    flip = rng.unit() < settings["flip_probability"]
    return Sampled(crop, resized, window or (0, 0, *resized), flip)


def _center(margin: int) -> int:
    return round(margin / 2)


def _shorter_side(height: int, width: int, shorter: int, most: int) -> tuple[int, int]:
    small, large = min(height, width), max(height, width)
    if large / small * shorter > most:
        shorter = max(1, round(most * small / large))
    longer = max(1, int(shorter * large / small))
    if shorter == 1:
        longer = min(longer, most)
    return (longer, shorter) if width < height else (shorter, longer)


def _random_crop(
    height: int, width: int, scale: Any, ratio: Any, rng: ImageRng
) -> tuple[int, int, int, int]:
    for _ in range(10):
        target = height * width * rng.range(*scale)
        aspect = math.exp(rng.range(math.log(ratio[0]), math.log(ratio[1])))
        own = (round(math.sqrt(target / aspect)), round(math.sqrt(target * aspect)))
        if 1 <= own[0] <= height and 1 <= own[1] <= width:
            return (rng.index(height - own[0] + 1), rng.index(width - own[1] + 1), *own)
    own, whole = [height, width], width / height
    if whole < ratio[0]:
        own[0] = min(max(int(width / ratio[0] + 0.5), 1), height)
    elif whole > ratio[1]:
        own[1] = min(max(int(height * ratio[1] + 0.5), 1), width)
    return ((height - own[0]) // 2, (width - own[1]) // 2, own[0], own[1])


def decoded(masks: Any, size: tuple[int, int]) -> list[np.ndarray]:
    """Decode masks with pycocotools and Pillow at the size of their image."""
    if isinstance(masks, IdMap):
        image = masks.image
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as file:
            pixels = np.asarray(file.convert("RGB") if masks.coding == "rgb" else file)
        ids = pixels.astype(np.int64)
        if masks.coding == "rgb":
            ids = ids @ np.array([1, 256, 256**2])
        return [ids == number for number in masks.ids]
    return [_decoded(mask, size) for mask in masks]


def _decoded(mask: Any, size: tuple[int, int]) -> np.ndarray:
    if isinstance(mask, Polygons):
        found = coco.merge(coco.frPyObjects([list(ring) for ring in mask.rings], *size))
    elif isinstance(mask, PackedMask):
        rows = np.frombuffer(mask.bits, np.uint8).reshape(size[0], -1)
        return np.unpackbits(rows, axis=1, count=size[1]).astype(bool)
    else:
        assert isinstance(mask, Rle)
        found = {"counts": mask.counts, "size": list(mask.size)}
        if isinstance(mask.counts, tuple):
            found = coco.frPyObjects({**found, "counts": list(mask.counts)}, *size)
    return coco.decode(found).astype(bool)


def transformed(mask: np.ndarray, sampled: Sampled, padded: tuple[int, int]) -> np.ndarray:
    """Crop, resize, cut and mirror a mask with Pillow, and pad it with zeros."""
    top, left, height, width = sampled.crop
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    image = image.crop((left, top, left + width, top + height))
    image = image.resize(sampled.resized[::-1], Image.Resampling.NEAREST)
    top, left, height, width = sampled.window
    image = image.crop((left, top, left + width, top + height))
    if sampled.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    out = np.zeros(padded, bool)
    out[:height, :width] = np.asarray(image) > 0
    return out
