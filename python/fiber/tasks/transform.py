"""Image transforms in training, of all tasks of a run or of one.

This module does not import torch, so that recipes can be listed and checked quickly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fiber.config_io import nearest, require
from fiber.messages import shown

#: RandAugment operations that move pixels; boxes are not adjusted.
MOVING_OPERATIONS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
#: Names of the operations of each RandAugment policy.
RAND_AUGMENT_OPERATIONS = {
    "fiber": (
        "Identity",
        "AutoContrast",
        "Equalize",
        "Brightness",
        "Sharpness",
        *MOVING_OPERATIONS,
    ),
    "meter": (
        "AutoContrast",
        "Equalize",
        "Rotate",
        "Posterize",
        "Solarize",
        "SolarizeAdd",
        "Color",
        "Contrast",
        "Brightness",
        "Sharpness",
        "ShearX",
        "ShearY",
        "TranslateX",
        "TranslateY",
    ),
}
#: Maximum magnitude of each RandAugment policy.
MAX_MAGNITUDE = {"fiber": 10, "meter": 30}


@dataclass(frozen=True, kw_only=True)
class RandAugmentConfig:
    """RandAugment with the operations of a published model.

    Fields that are None have the published values of the policy.
    """

    #: "fiber": ten operations on the resized image, filled with gray, as in the published
    #: coarse-stage fine-tuning; "meter": fourteen on the image as stored, before the resize, filled
    #: with black, as in METER's fine-tuning.
    policy: Literal["fiber", "meter"] = "fiber"
    #: Number of operations drawn per image, with replacement; 0 disables RandAugment. The published
    #: number is 2.
    num_ops: int = 0
    #: Strength of every operation: from 0 to 10 for "fiber", where 7 is published, and to 30 for
    #: "meter", where 9 is. These rotate by 21 or 9 degrees, shear by 0.21 or 0.09, and translate by
    #: 7 pixels of the resized or 30 pixels of the original image.
    magnitude: float | None = None
    #: Probability of applying a drawn operation: 0.5 for "fiber", 1 for "meter".
    probability: float | None = None
    #: Names to draw from, by default all of the policy; a repeated name is drawn more often. Shear,
    #: translation and rotation are not allowed with boxes.
    operations: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        where = "transform.rand_augment"
        require(
            self.policy in MAX_MAGNITUDE,
            f"{where}.policy must be one of {', '.join(map(repr, MAX_MAGNITUDE))}, got"
            f" {shown(self.policy)}",
        )
        largest = MAX_MAGNITUDE[self.policy]
        for name, most in (("num_ops", math.inf), ("magnitude", largest), ("probability", 1)):
            value = getattr(self, name)
            require(
                value is None or 0 <= value <= most,
                f"{where}.{name} must be in [0, {most}] for policy {shown(self.policy)}, got"
                f" {value}",
            )
        if self.num_ops and self.operations == ():
            raise ValueError(f"{where}.operations is empty; expected at least one operation")
        known = RAND_AUGMENT_OPERATIONS[self.policy]
        for name in self.operations or ():
            if name not in known:
                hint = nearest(name, known)
                raise ValueError(
                    f"{where}.operations: unknown operation {shown(name)} of policy"
                    f" {shown(self.policy)};"
                    f" {hint}"
                )

    @property
    def moving_operations(self) -> list[str]:
        """Names of the operations drawn from that move pixels."""
        drawn = RAND_AUGMENT_OPERATIONS[self.policy] if self.operations is None else self.operations
        return [name for name in MOVING_OPERATIONS if self.num_ops and name in drawn]


@dataclass(frozen=True, kw_only=True)
class ColorJitterConfig:
    """Color jitter, drawn per image and applied after the resize and flip.

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
                f"transform.color_jitter.{name} must be an ascending range in"
                f" [{lowest}, {highest}], got {[least, most]}",
            )


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Preprocessing of training images."""

    #: "squash": resize to image_size x image_size, ignoring the aspect ratio (coarse pre-training);
    #: "crop": random crop, resized to image_size x image_size (coarse fine-tuning);
    #: "center_crop": resize the shorter side to image_size and keep the central square (METER);
    #: "shorter_side": resize the shorter side, keeping the aspect ratio, and pad to the largest
    #: image of the batch (fine stage); "scale_jitter": resize to a random scale of image_size, keep
    #: at most image_size x image_size, and pad to it (segmentation).
    kind: Literal["squash", "crop", "center_crop", "shorter_side", "scale_jitter"] = "squash"
    #: Probability of a horizontal flip ("crop", "shorter_side", "scale_jitter"), which also swaps
    #: "left" and "right" in texts and phrases, except in statements about two images.
    flip_probability: float = 0.0
    #: Range of the area fraction kept by "crop", and by "shorter_side" when it crops.
    crop_scale: tuple[float, float] = (0.5, 1.0)
    #: Probability that "shorter_side" first crops the image, roughly keeping its aspect ratio. A
    #: box is dropped and counted if its center is outside the crop or less than a tenth of
    #: its area remains; its words stay in the text. A crop that would drop all boxes is not used.
    crop_probability: float = 0.0
    #: Range of the scale of "scale_jitter".
    jitter_scale: tuple[float, float] = (0.1, 2.0)
    #: Lengths of the shorter side in pixels; "shorter_side" draws one per image.
    shorter_sides: tuple[int, ...] = (480, 560, 640, 720, 800)
    #: Maximum length of the longer side for "shorter_side", in pixels.
    max_size: int = 1333
    color_jitter: ColorJitterConfig = field(default_factory=ColorJitterConfig)
    rand_augment: RandAugmentConfig = field(default_factory=RandAugmentConfig)
