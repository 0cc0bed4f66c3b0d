"""Registry of architectures.

A model family is a folder next to this file, or another installed package, whose `ARCHITECTURES`
`fiber.models.families` lists; FIBER has one entry per stage, METER one.
Other code depends on the entry, on the heads of a config ("grounding" in config.heads) or on what
a network can do (`fiber.models.abilities`), never on the name or a class of a family. A network
stores its config in `config` and its encoders in `backbone` (`Network`); `ModelConfig` lists what
a config has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch

from fiber.data import ImageTransform, Tokenizer
from fiber.messages import shown_names
from fiber.models.architecture import Architecture, ModelConfig, Network
from fiber.models.encoders.keys import EncoderFormat
from fiber.models.families import (
    FAMILIES,
    installed_families,
    own_architectures,
    read_config,
)
from fiber.models.init import WithoutInit

__all__ = [
    "Architecture",
    "ModelConfig",
    "Network",
    "architecture_of",
    "architectures",
    "build_empty",
    "build_model",
    "check_tokenizer",
    "encoder_format",
    "inference_transform",
    "read_config",
    "recognize",
]


def architectures() -> Iterator[Architecture]:
    """Yield all entries in recognition order.

    A family is imported when its turn comes: first those of this package, then those of others.
    """
    yield from _own()
    yield from _installed()


def _own() -> Iterator[Architecture]:
    for family in FAMILIES:
        yield from own_architectures(family)


def _installed() -> Iterator[Architecture]:
    for each in installed_families():
        yield from each.architectures


def _of_family(family: str) -> Iterator[Architecture]:
    """Yield the entries that a family may have, importing no other family of this package."""
    return iter(own_architectures(family)) if family in FAMILIES else _installed()


def architecture_of(config: ModelConfig) -> Architecture:
    """Return the registry entry for a config.

    Raises:
        TypeError: if no family has such configs.
    """
    for entry in _of_family(getattr(config, "family", "fiber")):
        if isinstance(config, entry.config_class) and entry.stage in (
            None,
            getattr(config, "stage", None),
        ):
            return entry
    raise TypeError(f"no model family has configs of type {type(config).__name__}")


def build_model(config: ModelConfig) -> Network:
    """Build a network from its config."""
    return architecture_of(config).network(config)


def build_empty(config: ModelConfig) -> Network:
    """Build a network on the meta device: its tensors have shapes, but no values and no memory."""
    with torch.device("meta"), WithoutInit():
        return build_model(config)


def inference_transform(config: ModelConfig, task: str | None = None) -> ImageTransform:
    """Return the image preprocessing of a model at inference, for a task or by default."""
    return architecture_of(config).transform(config, task)


def check_tokenizer(tokenizer: Tokenizer, config: ModelConfig | None = None) -> None:
    """Check that a model can use a tokenizer; without a config, one whose text encoder is RoBERTa.

    Raises:
        ValueError: if it cannot; the message gives the first reason.
    """
    if config is None:
        tokenizer.check_for_models()
    else:
        architecture_of(config).check_tokenizer(tokenizer, config)


def encoder_format(names: Collection[str]) -> EncoderFormat | None:
    """Detect the format of a standalone encoder by its keys; return None if none matches."""
    found = _matching_format(_own(), names)
    # Entry points are only scanned for files that are of no family of this package.
    if found is not None or any(entry.recognizes(names) for entry in _own()):
        return found
    return _matching_format(_installed(), names)


def _matching_format(
    entries: Iterator[Architecture], names: Collection[str]
) -> EncoderFormat | None:
    formats = (each for entry in entries for each in entry.encoders)
    return next((each for each in formats if each.layout(names) is not None), None)


def recognize(names: Collection[str]) -> Architecture:
    """Find the architecture of a published checkpoint by its keys.

    Raises:
        ValueError: if no architecture matches.
    """
    for entry in architectures():
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
    titles = " or ".join(entry.title for entry in architectures())
    raise ValueError(
        f"the file contains no published model: expected keys of {titles}, got"
        f" {shown_names(sorted(names), 4)}"
    )
