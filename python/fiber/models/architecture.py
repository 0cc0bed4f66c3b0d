"""What the registry knows of a model family: its config, its network and its files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from fiber.data import ImageTransform, Tokenizer
from fiber.models.encoders.keys import EncoderFormat, KeyMap


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


class Network(nn.Module):
    """Base class of the networks of all families.

    What a network can do is in `fiber.models.abilities`; its heads are those of `config.heads`.
    """

    #: The `ModelConfig` from which the network is built; each family has a class of its own.
    config: Any
    #: The encoders with their fusion.
    backbone: Any


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Registry entry of an architecture."""

    #: Value of the config's `family` field, which FIBER's configs lack.
    family: str
    #: Value of the config's `stage` field, if it has one.
    stage: str | None = None
    #: Display name.
    title: str
    #: Class of the config, and the function that builds a network from it.
    config_class: type[Any]
    network: Callable[[Any], Any]
    #: Recognizes keys of the architecture's published checkpoints.
    recognizes: Callable[[Collection[str]], bool]
    #: Key of the state dict in published files.
    published_key: Literal["state_dict", "model"]
    #: Input channel order of published files, and our key of the weight that depends on it.
    published_channel_order: Literal["rgb", "bgr"]
    first_convolution: str
    #: Infers the config from published tensors and the stored config.
    infer_config: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Any]
    #: Converts a config to the dict stored in published files.
    stored_config: Callable[[Any], dict[str, Any]]
    #: Returns the mapping from our keys to published keys.
    keys: Callable[[Any], KeyMap]
    #: Returns the config fields that shapes of our tensors determine, by dotted name.
    stored_sizes: Callable[[Mapping[str, tuple[int, ...]]], dict[str, Any]] = lambda shapes: {}
    #: Returns why a published key outside `keys` is ignored, or None if it is unknown.
    ignored_key: Callable[[str, Any], str | None]
    #: Default values of tensors that a published file may lack, by our keys.
    default_values: Callable[[Any, Container[str]], dict[str, float]] = lambda config, names: {}
    #: Converts published tensors before `keys` is applied.
    from_published: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda state: state
    #: Inverse of `from_published`; adds published buffers.
    to_published: Callable[[Any, Any], dict[str, Tensor]] = lambda state, config: state
    #: Encoders that can be loaded from and written to standalone files.
    encoders: tuple[EncoderFormat, ...]
    #: Resizes tensors that depend on the image size, with our keys or published keys.
    resize: Callable[[Mapping[str, Tensor], Any], Mapping[str, Tensor]]
    #: Hyperparameters that determine most tensor shapes, by display name.
    main_sizes: Callable[[Any], dict[str, Any]]
    #: Image preprocessing at inference.
    transform: Callable[[Any], ImageTransform]
    #: Arguments of `ImageTransform` for training and inference alike: normalization, if it is not
    #: that of ImageNet, and the use of alpha.
    image_options: Callable[[Any], dict[str, Any]] = lambda config: {}
    #: Raises ValueError if the model cannot use a tokenizer.
    check_tokenizer: Callable[[Tokenizer, Any], None] = lambda tokenizer, config: (
        tokenizer.check_for_models()
    )
    #: Describes a config in one line.
    describe: Callable[[Any], str]
