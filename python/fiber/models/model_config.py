"""`ModelConfig`: what the config of a network of any family has.

This module does not import torch, so that recipes can be listed and checked quickly.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol


class ModelConfig(Protocol):
    """Config of a network of any family: a frozen dataclass with these fields or properties.

    A family other than FIBER also has a field `family`, whose default is its name. Sections and
    fields besides these are the family's own.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads, which decide what tasks and methods a model is for."""
        ...

    @property
    def channel_order(self) -> Literal["rgb", "bgr"]:
        """Input channel order."""
        ...

    @property
    def max_tokens(self) -> int:
        """Maximum text length in tokens, including <s> and </s>."""
        ...

    @property
    def vocab_size(self) -> int:
        """Vocabulary size of the text encoder."""
        ...

    @property
    def num_answers(self) -> int:
        """Number of answers of the VQA head."""
        ...

    @property
    def image_size(self) -> int:
        """Input height and width in pixels."""
        ...

    @property
    def weight_start(self) -> str:
        """Initialization of linear weights; with "fan_in", heads also start from the data."""
        ...

    @property
    def mlm_units(self) -> tuple[str, ...]:
        """Units that MLM may mask: "token", "word", "position"."""
        ...

    @property
    def has_row_draws(self) -> bool:
        """True if dropout may be drawn by row."""
        ...

    def with_image_size(self, image_size: int) -> Any:
        """Return a copy of the config with a new input size; raise ValueError if it cannot be."""
        ...

    def with_vocabulary(self, vocab_size: int) -> Any:
        """Return a copy of the config with a new vocabulary size."""
        ...

    def with_answers(self, count: int) -> Any:
        """Return a copy of the config with a new number of answers of the VQA head."""
        ...

    def check_published(self, prefix: str = "") -> None:
        """Raise ValueError if a published run cannot have the config; see `MeterConfig`."""
        ...


def text_cleaning(config: Any) -> str:
    """Return how a family cleans texts before they are tokenized, or "" if it does not.

    It is the attribute `text_cleaning` of its configs: a name of
    `fiber.data.texts.cleaning.CLEANERS`.
    """
    return getattr(config, "text_cleaning", "")
