"""Registry of architectures.

A model family is a folder next to this file plus its entries here; FIBER has one entry per stage,
METER one.
Other code depends on the entry or on the heads of a config ("grounding" in config.heads), never on
the name of a family or stage. A network stores its config in `config` and its encoders in
`backbone`. A config is a frozen dataclass with `heads`, `channel_order`, `vocab_size`,
`num_answers` and `with_image_size`; configs of families other than FIBER also have a `family`
field.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from fiber.config import FiberConfig
from fiber.config_io import from_dict
from fiber.data import ImageTransform, Tokenizer
from fiber.messages import shown, shown_names
from fiber.models.encoders.keys import EncoderFormat, KeyMap
from fiber.models.encoders.position_interpolation import resize_bias_tables
from fiber.models.fiber import infer_config, keys, preprocess
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.init import WithoutInit
from fiber.models.meter import infer_config as meter_infer_config
from fiber.models.meter import keys as meter_keys
from fiber.models.meter.config import MeterConfig
from fiber.models.meter.image_text import MeterImageText
from fiber.models.meter.preprocess import check_tokenizer as check_meter_tokenizer
from fiber.models.meter.preprocess import image_options, meter_transform

#: A network of any registered architecture, and its config.
Network = FiberImageText | FiberDetector | MeterImageText
ModelConfig = FiberConfig | MeterConfig


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


def _resize_windows(state: Mapping[str, Tensor], config: FiberConfig) -> Mapping[str, Tensor]:
    return resize_bias_tables(state, config.swin.window_size)


#: Creates a FIBER entry, with the arguments that both stages share.
_fiber = partial(
    Architecture,
    family="fiber",
    config_class=FiberConfig,
    first_convolution=keys.FIRST_CONVOLUTION,
    stored_config=infer_config.stored_config,
    encoders=keys.ENCODERS,
    resize=_resize_windows,
    main_sizes=infer_config.main_sizes,
    stored_sizes=infer_config.stored_sizes,
    describe=infer_config.describe,
)

#: All entries, in recognition order.
ARCHITECTURES = (
    # Before FIBER, whose keys of the image encoder have the same prefix.
    Architecture(
        family="meter",
        title="METER",
        config_class=MeterConfig,
        network=MeterImageText,
        recognizes=meter_keys.is_meter,
        published_key="state_dict",
        published_channel_order="rgb",
        first_convolution=meter_keys.FIRST_CONVOLUTION,
        infer_config=meter_infer_config.meter_config,
        stored_config=meter_infer_config.stored_config,
        keys=meter_keys.meter_keys,
        stored_sizes=meter_infer_config.stored_sizes,
        ignored_key=meter_keys.ignored_meter_key,
        encoders=meter_keys.ENCODERS,
        resize=meter_keys.resize_tables,
        main_sizes=meter_infer_config.main_sizes,
        transform=meter_transform,
        image_options=image_options,
        check_tokenizer=check_meter_tokenizer,
        describe=meter_infer_config.describe,
    ),
    _fiber(
        stage="coarse",
        title="coarse FIBER",
        network=FiberImageText,
        recognizes=lambda names: any(name.startswith(keys.COARSE_IMAGE) for name in names),
        published_key="state_dict",
        published_channel_order="rgb",
        infer_config=infer_config.coarse_config,
        keys=keys.coarse_keys,
        ignored_key=keys.ignored_coarse_key,
        default_values=keys.coarse_defaults,
        transform=preprocess.coarse_transform,
    ),
    _fiber(
        stage="fine",
        title="fine FIBER",
        network=FiberDetector,
        recognizes=lambda names: any(name.startswith("fusion_backbone.") for name in names),
        published_key="model",
        published_channel_order="bgr",
        infer_config=infer_config.fine_config,
        keys=keys.fine_keys,
        ignored_key=keys.ignored_fine_key,
        from_published=keys.from_published_fine,
        to_published=keys.to_published_fine,
        transform=preprocess.fine_transform,
    ),
)


def architecture_of(config: ModelConfig) -> Architecture:
    """Return the registry entry for a config."""
    entries = [entry for entry in ARCHITECTURES if isinstance(config, entry.config_class)]
    return next(
        entry
        for entry in entries
        if entry.stage is None or entry.stage == getattr(config, "stage", None)
    )


def build_model(config: ModelConfig) -> Network:
    """Build a network from its config."""
    return architecture_of(config).network(config)


def build_empty(config: ModelConfig) -> Network:
    """Build a network on the meta device: its tensors have shapes, but no values and no memory."""
    with torch.device("meta"), WithoutInit():
        return build_model(config)


def inference_transform(config: ModelConfig) -> ImageTransform:
    """Return the image preprocessing of a model at inference."""
    return architecture_of(config).transform(config)


def check_tokenizer(tokenizer: Tokenizer, config: ModelConfig | None = None) -> None:
    """Check that a model can use a tokenizer; without a config, one whose text encoder is RoBERTa.

    Raises:
        ValueError: if it cannot; the message gives the first reason.
    """
    if config is None:
        tokenizer.check_for_models()
    else:
        architecture_of(config).check_tokenizer(tokenizer, config)


def read_config(values: dict[str, Any]) -> ModelConfig:
    """Build a config of any family from a dict of its fields.

    Raises:
        ValueError: if the family is unknown or a field is invalid; the message names the family or
            field.
    """
    classes = {entry.family: entry.config_class for entry in ARCHITECTURES}
    family = values.get("family", "fiber")
    if not isinstance(family, str) or family not in classes:
        known = " or ".join(map(repr, classes))
        raise ValueError(f"unknown family {shown(family)}; expected {known}")
    return from_dict(classes[family], values)


def encoder_format(names: Collection[str]) -> EncoderFormat | None:
    """Detect the format of a standalone encoder by its keys; return None if none matches."""
    formats = (each for entry in ARCHITECTURES for each in entry.encoders)
    return next((each for each in formats if each.layout(names) is not None), None)


def recognize(names: Collection[str]) -> Architecture:
    """Find the architecture of a published checkpoint by its keys.

    Raises:
        ValueError: if no architecture matches.
    """
    for entry in ARCHITECTURES:
        if entry.recognizes(names):
            return entry
    encoder = encoder_format(names)
    if encoder is not None:
        raise ValueError(
            f"the file contains a {encoder.title} encoder without heads; pass it to fiber train"
            " --init (init=...) to train a model from it"
        )
    if any(name.startswith("backbone.image.") for name in names):
        raise ValueError(
            "the file contains the weights of a fiber model without its config.json; pass the"
            " model folder instead"
        )
    titles = " or ".join(entry.title for entry in ARCHITECTURES)
    raise ValueError(
        f"the file contains no published model: expected keys of {titles}, got"
        f" {shown_names(sorted(names), 4)}"
    )
