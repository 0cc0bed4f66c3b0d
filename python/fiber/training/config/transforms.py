"""Image transforms of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fiber.config_io import nearest

#: Operations of RandAugment, and those that boxes do not follow.
RAND_AUGMENT_OPERATIONS = (
    "Identity",
    "AutoContrast",
    "Equalize",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
)
MOVING_OPERATIONS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


@dataclass(frozen=True, kw_only=True)
class RandAugmentConfig:
    """Random operations on a training image after its crop, resize and flip.

    The defaults are those of the published coarse fine-tuning, except `num_ops`, which is 2 there.
    """

    #: Operations drawn per image, with replacement; 0 disables.
    num_ops: int = 0
    #: Strength of every operation, 0 to 10: 7 rotates by 21 degrees, shears by 0.21, translates by
    #: 7 pixels, and scales brightness and sharpness by 1.36.
    magnitude: float = 7.0
    #: Probability of applying a drawn operation.
    probability: float = 0.5
    #: Names to draw from; a repeated name is drawn more often. Boxes allow no shear, translation or
    #: rotation.
    operations: tuple[str, ...] = RAND_AUGMENT_OPERATIONS

    def __post_init__(self) -> None:
        where = "data.transform.rand_augment"
        for name, most in (("num_ops", float("inf")), ("magnitude", 10), ("probability", 1)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise ValueError(f"{where}.{name} must be in [0, {most}], got {value}")
        if self.num_ops and not self.operations:
            raise ValueError(f"{where}.operations must name at least one")
        for name in self.operations:
            if name not in RAND_AUGMENT_OPERATIONS:
                close = nearest(name, RAND_AUGMENT_OPERATIONS)
                raise ValueError(f"{where}.operations: {name!r} is no operation; {close}")

    def moving(self) -> tuple[str, ...]:
        """Active operations that move pixels, so that boxes would not follow."""
        drawn = self.operations if self.num_ops else ()
        return tuple(name for name in MOVING_OPERATIONS if name in drawn)


@dataclass(frozen=True, kw_only=True)
class ColorJitterConfig:
    """Color changes, drawn for each image, before the operations of RandAugment.

    A range of one value disables a change. All are off by default, as in both published stages.
    """

    #: Range of the factor on every value.
    brightness: tuple[float, float] = (1.0, 1.0)
    #: Range of the factor on the distance from the image's mean gray.
    contrast: tuple[float, float] = (1.0, 1.0)
    #: Range of the factor on the distance from a pixel's own gray.
    saturation: tuple[float, float] = (1.0, 1.0)
    #: Range of the hue shift, in fractions of the circle from -0.5 to 0.5.
    hue: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name, (least, most) in vars(self).items():
            lowest, highest = (-0.5, 0.5) if name == "hue" else (0.0, float("inf"))
            if not lowest <= least <= most <= highest:
                raise ValueError(
                    f"data.transform.color_jitter.{name} must be a range in [{lowest}, {highest}],"
                    f" smallest first, got {[least, most]}"
                )


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Preprocessing of a training image."""

    #: "squash": resized to image_size x image_size, aspect ratio not kept (coarse pre-training);
    #: "crop": a random crop, resized to image_size x image_size (coarse fine-tuning);
    #: "shorter_side": aspect ratio kept, padded to the largest image of the batch (fine).
    kind: Literal["squash", "crop", "shorter_side"] = "squash"
    #: Probability of a horizontal flip ("crop" and "shorter_side"), which swaps the words for left
    #: and right in the text, but not in a statement about two images.
    flip_probability: float = 0.0
    #: Range of the fraction of the image's area kept by "crop", and by "shorter_side" when it
    #: crops.
    crop_scale: tuple[float, float] = (0.5, 1.0)
    #: Probability that "shorter_side" crops to about the image's shape before the resize. A box
    #: whose center is outside the crop, or of which less than a tenth remains, is dropped and
    #: counted; its words stay in the text without a box. A crop without any of the image's boxes is
    #: not used.
    crop_probability: float = 0.0
    #: Lengths in pixels, of which "shorter_side" draws one per image.
    shorter_sides: tuple[int, ...] = (480, 560, 640, 720, 800)
    #: Maximum longer side of "shorter_side" in pixels.
    max_size: int = 1333
    color_jitter: ColorJitterConfig = field(default_factory=ColorJitterConfig)
    rand_augment: RandAugmentConfig = field(default_factory=RandAugmentConfig)
