"""What happens to the pictures of a training run, as a part of its configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fiber.config_io import nearest

#: What RandAugment draws from, and of these what boxes do not follow.
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
    """Operations that are done to a training picture after its crop, resize and flip.

    The defaults are those of the published coarse fine-tuning but for `num_ops`, which is 2 there.
    """

    #: Operations drawn for each picture, with replacement; 0 is off.
    num_ops: int = 0
    #: Strength of every operation, 0 to 10: at 7 a turn of 21 degrees, a shear of 0.21, a move of
    #: 7 pixels, a factor of 1.36 on brightness and sharpness.
    magnitude: float = 7.0
    #: Probability that an operation that was drawn is carried out.
    probability: float = 0.5
    #: What is drawn from, a repeated name the more often. Boxes allow no shear, translation and
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
        """Operations that may be drawn and move pixels, so that boxes would not follow."""
        drawn = self.operations if self.num_ops else ()
        return tuple(name for name in MOVING_OPERATIONS if name in drawn)


@dataclass(frozen=True, kw_only=True)
class ColorJitterConfig:
    """Changes of colour, drawn for each picture, before the operations of RandAugment.

    A range of one value is off, as all are by default; neither published stage has any.
    """

    #: Least and largest factor of every value.
    brightness: tuple[float, float] = (1.0, 1.0)
    #: Least and largest factor of the distance from the picture's mean grey.
    contrast: tuple[float, float] = (1.0, 1.0)
    #: Least and largest factor of the distance from a pixel's own grey.
    saturation: tuple[float, float] = (1.0, 1.0)
    #: Least and largest turn of the hue, in parts of the circle from -0.5 to 0.5.
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
    """What happens to a training picture before the model sees it."""

    #: "squash": exactly image_size x image_size, aspect ratio not kept (coarse pre-training);
    #: "crop": a random part of it, resized to image_size x image_size (coarse fine-tuning);
    #: "shorter_side": aspect ratio kept, padded to the largest picture of the batch (fine).
    kind: Literal["squash", "crop", "shorter_side"] = "squash"
    #: Probability of a mirrored picture ("crop" and "shorter_side"); the words for left and
    #: right change places in its text, but not in a statement about two pictures.
    flip_probability: float = 0.0
    #: Smallest and largest share of the picture's area that "crop" keeps, and "shorter_side" where
    #: it cuts.
    crop_scale: tuple[float, float] = (0.5, 1.0)
    #: Probability that "shorter_side" cuts a part of about the picture's shape out before the
    #: resize. A box whose centre lies outside the part, or of which less than a tenth is left, is
    #: left out and counted; its words stay in the text, where they are true of nothing. A part
    #: without any of the picture's boxes is not taken.
    crop_probability: float = 0.0
    #: Lengths in pixels of which "shorter_side" draws one for each picture.
    shorter_sides: tuple[int, ...] = (480, 560, 640, 720, 800)
    #: Largest longer side in pixels that "shorter_side" allows.
    max_size: int = 1333
    color_jitter: ColorJitterConfig = field(default_factory=ColorJitterConfig)
    rand_augment: RandAugmentConfig = field(default_factory=RandAugmentConfig)
