"""Image transforms of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fiber.config_io import nearest, require

#: RandAugment operations that move pixels; boxes are not adjusted.
MOVING_OPERATIONS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
#: Names of the RandAugment operations.
RAND_AUGMENT_OPERATIONS = (
    "Identity",
    "AutoContrast",
    "Equalize",
    "Brightness",
    "Sharpness",
    *MOVING_OPERATIONS,
)


@dataclass(frozen=True, kw_only=True)
class RandAugmentConfig:
    """RandAugment, applied after crop, resize and flip.

    The defaults are those of the published coarse-stage fine-tuning, except `num_ops` (2 there).
    """

    #: Number of operations drawn per image, with replacement; 0 disables RandAugment.
    num_ops: int = 0
    #: Strength of every operation, from 0 to 10. For example, 7 rotates by 21 degrees, shears by
    #: 0.21, translates by 7 pixels, and scales brightness and sharpness by 1.36.
    magnitude: float = 7.0
    #: Probability of applying a drawn operation.
    probability: float = 0.5
    #: Names to draw from; a repeated name is drawn more often. Shear, translation and rotation are
    #: not allowed with boxes.
    operations: tuple[str, ...] = RAND_AUGMENT_OPERATIONS

    def __post_init__(self) -> None:
        where = "data.transform.rand_augment"
        for name, most in (("num_ops", math.inf), ("magnitude", 10), ("probability", 1)):
            value = getattr(self, name)
            require(0 <= value <= most, f"{where}.{name} must be in [0, {most}], got {value}")
        if self.num_ops and not self.operations:
            raise ValueError(f"{where}.operations is empty; expected at least one operation")
        for name in self.operations:
            if name not in RAND_AUGMENT_OPERATIONS:
                hint = nearest(name, RAND_AUGMENT_OPERATIONS)
                raise ValueError(f"{where}.operations: unknown operation {name!r}; {hint}")


@dataclass(frozen=True, kw_only=True)
class ColorJitterConfig:
    """Color jitter, drawn per image and applied before RandAugment.

    Color jitter is disabled by default, as in both published stages.
    """

    #: Range of the factor that scales every value.
    brightness: tuple[float, float] = (1.0, 1.0)
    #: Range of the factor that scales the difference from the image's mean gray.
    contrast: tuple[float, float] = (1.0, 1.0)
    #: Range of the factor that scales the difference from the pixel's gray.
    saturation: tuple[float, float] = (1.0, 1.0)
    #: Range of the hue shift, as a fraction of the color circle from -0.5 to 0.5.
    hue: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name, (least, most) in vars(self).items():
            lowest, highest = (-0.5, 0.5) if name == "hue" else (0.0, math.inf)
            require(
                lowest <= least <= most <= highest,
                f"data.transform.color_jitter.{name} must be an ascending range in"
                f" [{lowest}, {highest}], got {[least, most]}",
            )


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Preprocessing of training images."""

    #: "squash": resize to image_size x image_size, ignoring the aspect ratio (coarse pre-training);
    #: "crop": random crop, resized to image_size x image_size (coarse fine-tuning);
    #: "center_crop": resize the shorter side to image_size and keep the central square (METER);
    #: "shorter_side": resize the shorter side, keeping the aspect ratio, and pad to the largest
    #: image of the batch (fine stage).
    kind: Literal["squash", "crop", "center_crop", "shorter_side"] = "squash"
    #: Probability of a horizontal flip ("crop" and "shorter_side"), which also swaps "left" and
    #: "right" in the text, except in statements about two images.
    flip_probability: float = 0.0
    #: Range of the area fraction kept by "crop", and by "shorter_side" when it crops.
    crop_scale: tuple[float, float] = (0.5, 1.0)
    #: Probability that "shorter_side" first crops the image, roughly keeping its aspect ratio. A
    #: box is dropped and counted if its center is outside the crop or less than a tenth of
    #: its area remains; its words stay in the text. A crop that would drop all boxes is not used.
    crop_probability: float = 0.0
    #: Lengths of the shorter side in pixels; "shorter_side" draws one per image.
    shorter_sides: tuple[int, ...] = (480, 560, 640, 720, 800)
    #: Maximum length of the longer side for "shorter_side", in pixels.
    max_size: int = 1333
    color_jitter: ColorJitterConfig = field(default_factory=ColorJitterConfig)
    rand_augment: RandAugmentConfig = field(default_factory=RandAugmentConfig)
