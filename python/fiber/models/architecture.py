"""What the registry knows of a model family: its config, its network and its files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from fiber.data import ImageTransform, Tokenizer
from fiber.models.encoders.keys import EncoderFormat, KeyMap
from fiber.models.model_config import ModelConfig

__all__ = ["Architecture", "ModelConfig", "Network"]

#: Part of a network: an encoder, cross-modal layers, or a head.
Part = Literal["encoder", "cross_modal", "head"]


class Network(nn.Module):
    """Base class of the networks of all families.

    What a network can do is in `fiber.models.abilities`; its heads are those of `config.heads`.
    """

    #: The `ModelConfig` from which the network is built; each family has a class of its own.
    config: Any
    #: The encoders with their fusion.
    backbone: Any
    #: Part of each parameter by a prefix of its name, which chooses its learning rate; the first
    #: prefix that fits counts.
    parts: ClassVar[Mapping[str, Part]] = {}
    #: Whether the family's published code decays parameters, by pattern of names (* matches
    #: anything), where it does not decay matrices only; the first pattern that fits counts.
    published_decay: ClassVar[Mapping[str, bool]] = {}


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
    #: Key of the state dict in published files; None if they hold nothing else.
    published_key: Literal["state_dict", "model"] | None = "model"
    #: Input channel order of published files, and our key of the weight that depends on it.
    published_channel_order: Literal["rgb", "bgr"] = "rgb"
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
    ignored_key: Callable[[str, Any], str | None] = lambda name, config: None
    #: Default values of tensors that a published file may lack, by our keys.
    default_values: Callable[[Any, Container[str]], dict[str, float]] = lambda config, names: {}
    #: Converts published tensors before `keys` is applied.
    from_published: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda state: state
    #: Inverse of `from_published`; adds published buffers.
    to_published: Callable[[Any, Any], dict[str, Tensor]] = lambda state, config: state
    #: Encoders that can be loaded from and written to standalone files.
    encoders: tuple[EncoderFormat, ...] = ()
    #: Resizes tensors that depend on the image size, with our keys or published keys.
    resize: Callable[[Mapping[str, Tensor], Any], Mapping[str, Tensor]] = lambda state, config: (
        state
    )
    #: Linear layers that have LoRA adapters by default: full names, where * matches anything.
    lora_targets: tuple[str, ...] = ()
    #: Hyperparameters that determine most tensor shapes, by display name.
    main_sizes: Callable[[Any], dict[str, Any]]
    #: Returns the image preprocessing of inference for a task by name, or the default for None.
    transform: Callable[[Any, str | None], ImageTransform]
    #: Arguments of `ImageTransform` for training and inference alike: normalization, if it is not
    #: that of ImageNet, and the use of alpha.
    image_options: Callable[[Any], dict[str, Any]] = lambda config: {}
    #: Raises ValueError if the model cannot use a tokenizer.
    check_tokenizer: Callable[[Tokenizer, Any], None] = lambda tokenizer, config: (
        tokenizer.check_for_models()
    )
    #: Describes a config in one line.
    describe: Callable[[Any], str]
