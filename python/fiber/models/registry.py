"""Registry of architectures.

A model family is a folder next to this file plus its entries here; FIBER has one for each stage.
Other code uses an entry or the heads of a config ("grounding" in config.heads), never the name of a
stage.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fiber.config import FiberConfig
from fiber.data import ImageTransform
from fiber.models.encoders.keys import KeyMap, encoder_layout
from fiber.models.fiber import infer_config, keys, preprocess
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText

#: A network of any registered architecture.
Network = FiberImageText | FiberDetector


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Registry entry."""

    #: `FiberConfig.stage`.
    stage: str
    #: Name in messages.
    title: str
    #: Class of the network.
    network: Callable[[FiberConfig], Network]
    #: Prefix of keys that only its published checkpoints have.
    published_prefix: str
    #: Key of the state dict in published files.
    published_key: Literal["state_dict", "model"]
    #: Input channel order of published files.
    published_channel_order: Literal["rgb", "bgr"]
    #: Infers the config from published tensors and the stored config.
    infer_config: Callable[[Mapping[str, Tensor], Mapping[str, Any]], FiberConfig]
    #: Our keys -> published keys.
    keys: Callable[[FiberConfig], KeyMap]
    #: Reason to ignore a published key outside `keys`; None if it is unknown.
    ignored_key: Callable[[str, FiberConfig], str | None]
    #: Default values of tensors that a published file may lack, by our keys.
    default_values: Callable[[FiberConfig, Container[str]], dict[str, float]]
    #: Converts published tensors before `keys` is applied.
    from_published: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    #: Inverse of `from_published`; adds published buffers.
    to_published: Callable[[Mapping[str, Tensor], FiberConfig], dict[str, Tensor]]
    #: Image preprocessing at inference.
    transform: Callable[[FiberConfig], ImageTransform]
    #: Describes a config in one line.
    describe: Callable[[FiberConfig], str]


FIBER_COARSE = Architecture(
    stage="coarse",
    title="coarse FIBER",
    network=FiberImageText,
    published_prefix="vit_model.",
    published_key="state_dict",
    published_channel_order="rgb",
    infer_config=infer_config.coarse_config,
    keys=keys.coarse_keys,
    ignored_key=keys.ignored_coarse_key,
    default_values=keys.filled_in,
    from_published=lambda state: state,
    to_published=lambda state, config: dict(state),
    transform=preprocess.coarse_transform,
    describe=infer_config.describe_coarse,
)
FIBER_FINE = Architecture(
    stage="fine",
    title="fine FIBER",
    network=FiberDetector,
    published_prefix="fusion_backbone.",
    published_key="model",
    published_channel_order="bgr",
    infer_config=infer_config.fine_config,
    keys=keys.fine_keys,
    ignored_key=keys.ignored_fine_key,
    default_values=lambda config, names: {},
    from_published=keys.from_published_fine,
    to_published=keys.to_published_fine,
    transform=preprocess.fine_transform,
    describe=infer_config.describe_fine,
)

#: All entries, in the order of recognition.
ARCHITECTURES = (FIBER_COARSE, FIBER_FINE)
_BY_STAGE = {entry.stage: entry for entry in ARCHITECTURES}


def architecture_of(config: FiberConfig) -> Architecture:
    """Return the registry entry of a config."""
    return _BY_STAGE[config.stage]


def build_model(config: FiberConfig) -> Network:
    """Build a network from its config."""
    return architecture_of(config).network(config)


def inference_transform(config: FiberConfig) -> ImageTransform:
    """Return the image preprocessing of a model at inference."""
    return architecture_of(config).transform(config)


def recognize(names: Iterable[str]) -> Architecture:
    """Find the architecture of a published checkpoint by its keys.

    Raises:
        ValueError: if there is none.
    """
    names = sorted(names)
    for entry in ARCHITECTURES:
        if any(name.startswith(entry.published_prefix) for name in names):
            return entry
    encoder = encoder_layout(names)
    if encoder is not None:
        raise ValueError(
            f"it holds a {encoder.title} encoder alone, which has no heads; start the training of a"
            " model from it (fiber train --init, init=...)"
        )
    if any(name.startswith("backbone.image.") for name in names):
        raise ValueError(
            "it holds the weights of a model of this package without its config.json; pass the"
            " folder that has both"
        )
    expected = " or ".join(f"{each.published_prefix} ({each.title})" for each in ARCHITECTURES)
    raise ValueError(
        f"it holds no published model: expected tensor names with {expected}; the first of its"
        f" {len(names)} names are {', '.join(names[:4])}"
    )


def published_config(
    state: Mapping[str, Tensor], stated: Mapping[str, Any] | None = None
) -> FiberConfig:
    """Infer the config of a published checkpoint.

    Args:
        state: tensors by published key.
        stated: stored config, by the names of the published code.

    Raises:
        ValueError: if no architecture has these tensors, or the stored config contradicts them.
    """
    return recognize(state).infer_config(state, stated or {})
