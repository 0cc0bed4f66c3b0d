"""`ToyConfig`. No torch is imported, so that recipes are listed and checked quickly."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from fiber.config_io import check_ranges

#: Pixels of a side of a patch.
PATCH = 4


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Config of a toy model; `fiber.models.model_config.ModelConfig` lists what fiber reads."""

    #: Tells the family in config.json.
    family: Literal["toy"] = "toy"
    heads: tuple[str, ...] = ("count",)
    #: Channels of the image encoder.
    width: int = 24
    #: Largest number of objects that the head "count" can give.
    most_objects: int = 7
    image_size: int = 48
    channel_order: Literal["rgb", "bgr"] = "rgb"
    #: Set from the tokenizer and the answers of the data, which this model does not use.
    vocab_size: int = 512
    num_answers: int = 0

    max_tokens: ClassVar[int] = 64
    weight_start: ClassVar[str] = "published"
    mlm_units: ClassVar[tuple[str, ...]] = ("token",)
    has_row_draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        sizes = {"width": (1, 4096), "most_objects": (1, 1000), "image_size": (PATCH, 4096)}
        check_ranges(self, "", sizes)

    def with_image_size(self, image_size: int) -> ToyConfig:
        """Return a copy of the config with a new input size."""
        return dataclasses.replace(self, image_size=image_size)

    def with_vocabulary(self, vocab_size: int) -> ToyConfig:
        """Return a copy of the config with a new vocabulary size."""
        return dataclasses.replace(self, vocab_size=vocab_size)

    def with_answers(self, count: int) -> ToyConfig:
        """Return a copy of the config with a new number of answers."""
        return dataclasses.replace(self, num_answers=count)

    def check_published(self, prefix: str = "") -> None:
        """Check what only published runs need: nothing."""
