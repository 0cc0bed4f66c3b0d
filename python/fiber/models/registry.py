"""Registry of model families: those of this package, and entry points of other packages.

A family is a folder next to this file with a line of `FAMILIES` and of `CONFIGS`, or a module of
another package, which declares it in its pyproject.toml:

    [project.entry-points."fiber.families"]
    toy = "toy_family.architectures:ARCHITECTURES"

Its value is a tuple of `Architecture`: FIBER has one entry per stage, other families one.
Other code depends on the entry, on the heads of a config ("grounding" in config.heads) or on what
a network can do (`fiber.models.abilities`), never on the name or a class of a family. A network
stores its config in `config` and its encoders in `backbone` (`Network`); `ModelConfig` lists what
a config has.

Modules are imported when they are needed, so this one needs no torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from fiber.config_io import from_dict
from fiber.messages import caller_level, printable, shown, shown_names
from fiber.models.model_config import ModelConfig
from fiber.tasks.lazy import load, package_of

if TYPE_CHECKING:
    from fiber.data import ImageTransform, Tokenizer
    from fiber.models.architecture import Architecture, Network
    from fiber.models.encoders.keys import EncoderFormat

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
    "own_transforms",
    "read_config",
    "recognize",
]

#: Group of the entry points.
GROUP = "fiber.families"

#: Families of this package, in recognition order.
FAMILIES = {
    # Before FIBER, whose keys of the image encoder have the same prefix.
    "meter": "fiber.models.meter.architectures:ARCHITECTURES",
    "fiber": "fiber.models.fiber.architectures:ARCHITECTURES",
    "xdecoder": "fiber.models.xdecoder.architectures:ARCHITECTURES",
}

#: Their configs, in modules that need no torch.
CONFIGS = {
    "meter": "fiber.models.meter.config:MeterConfig",
    "fiber": "fiber.config:FiberConfig",
    "xdecoder": "fiber.models.xdecoder.config:XDecoderConfig",
}

#: Tasks whose images may have preprocessing of their own.
TRANSFORM_TASKS = ("caption", "image_text", "instances")

#: Maximum number of characters of an error in a message.
_MAX_ERROR = 200


@dataclass(frozen=True, kw_only=True)
class InstalledFamily:
    """Entry point of another package, loaded."""

    name: str
    #: Module and attribute, "toy_family.architectures:ARCHITECTURES".
    target: str
    #: Name and version of the package.
    package: str
    #: Empty if the entry point cannot be used.
    architectures: tuple[Architecture, ...] = ()
    #: Why it cannot be used, in one line, or "".
    error: str = ""

    def __str__(self) -> str:
        return f"{shown(self.name)} of {self.package} ({self.target})"


def __getattr__(name: str) -> Any:
    # These need torch.
    if name in ("Architecture", "Network"):
        return getattr(importlib.import_module("fiber.models.architecture"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def own_architectures(family: str) -> tuple[Architecture, ...]:
    """Import the entries of a family of this package."""
    return load(FAMILIES[family])


def read_config(value: Any, where: str = "") -> ModelConfig:
    """Build the config of a model of any family from a dict of its fields, or return a config.

    Args:
        value: fields; those of FIBER's configs have no `family`.
        where: name of the field that has the config, as in "model", for messages.

    Raises:
        ValueError: if the family is unknown or a field is invalid; the message names the family or
            field, and the families that are installed.
    """
    prefix = f"{where}." if where else ""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return cast(Any, value)
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'model'}: expected fields of a model, got {shown(value)}")
    family = value.get("family", "fiber")
    if isinstance(family, str):
        found = load(CONFIGS[family]) if family in CONFIGS else None
        for entry in () if found else _installed():
            found = entry.config_class if entry.family == family else found
        if found is not None:
            return from_dict(found, value, where=prefix)
    known = " or ".join(map(shown, dict.fromkeys([*CONFIGS, *(e.family for e in _installed())])))
    skipped = "".join(f"; skipped: {each}" for each in installed_families() if each.error)
    raise ValueError(
        f"{prefix}family: unknown family {shown(family)}; expected {known}; no package with it is"
        f" installed (entry point of the group {GROUP!r}){skipped}"
    )


def entry_points() -> list[importlib.metadata.EntryPoint]:
    """List the entry points of other packages by name, without importing them."""
    return sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name)


@cache
def installed_families() -> tuple[InstalledFamily, ...]:
    """Import the families of other packages, once.

    A family that fails to import, or has the name of another one, is named in a warning and
    skipped.
    """
    found: list[InstalledFamily] = []
    for entry in entry_points():
        taken = {*FAMILIES, *(one.family for other in found for one in other.architectures)}
        description: dict[str, Any] = {
            "name": entry.name,
            "target": printable(entry.value, _MAX_ERROR),
            "package": package_of(entry),
        }
        try:
            architectures = _checked(entry.load(), taken)
        except Exception as error:
            text = printable(f"{type(error).__name__}: {error}", _MAX_ERROR)
            found.append(InstalledFamily(**description, error=text))
            warnings.warn(
                f"model family {found[-1]} is skipped: {text}",
                RuntimeWarning,
                stacklevel=caller_level(),
            )
        else:
            found.append(InstalledFamily(**description, architectures=architectures))
    return tuple(found)


def _checked(value: Any, taken: set[str]) -> tuple[Architecture, ...]:
    """Check that an entry point is a tuple of architectures of new families."""
    # Needs torch, which is not installed yet when `fiber doctor` lists entry points.
    from fiber.models.architecture import Architecture

    if not isinstance(value, (tuple, list)) or not value:
        raise TypeError(f"expected a tuple of Architecture, got {shown(value)}")
    for each in value:
        if not isinstance(each, Architecture):
            raise TypeError(f"expected a tuple of Architecture, got one with {shown(each)}")
        if each.family in taken:
            raise ValueError(f"the family {shown(each.family)} exists already")
    return tuple(value)


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
    import torch

    from fiber.models.init import WithoutInit

    with torch.device("meta"), WithoutInit():
        return build_model(config)


def inference_transform(config: ModelConfig, task: str | None = None) -> ImageTransform:
    """Return the image preprocessing of a model at inference, for a task or by default."""
    return architecture_of(config).transform(config, task)


def own_transforms(config: ModelConfig) -> dict[str, ImageTransform]:
    """Return the image preprocessing of the tasks for which it is not the default, by task."""
    default = inference_transform(config).describe()
    found = {task: inference_transform(config, task) for task in TRANSFORM_TASKS}
    return {task: own for task, own in found.items() if own.describe() != default}


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
        f" {shown_names(sorted(names), 4)}; pass a released file of one of these"
        " (docs/photographs.md says where they are), or the folder of a run"
    )
