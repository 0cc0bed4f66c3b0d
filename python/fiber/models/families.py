"""Where model families come from: this package, and entry points of other installed packages.

A family is a tuple of `Architecture`. Another package declares one in its pyproject.toml:

    [project.entry-points."fiber.families"]
    toy = "toy_family.architectures:ARCHITECTURES"

Modules are imported when they are needed, so this one needs no torch.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from fiber.config_io import from_dict
from fiber.messages import caller_level, printable, shown
from fiber.tasks.lazy import load, package_of

if TYPE_CHECKING:
    from fiber.models.architecture import Architecture
    from fiber.models.model_config import ModelConfig

#: Group of the entry points.
GROUP = "fiber.families"

#: Families of this package, in recognition order.
FAMILIES = {
    # Before FIBER, whose keys of the image encoder have the same prefix.
    "meter": "fiber.models.meter.architectures:ARCHITECTURES",
    "fiber": "fiber.models.fiber.architectures:ARCHITECTURES",
}

#: Their configs, in modules that need no torch.
CONFIGS = {
    "meter": "fiber.models.meter.config:MeterConfig",
    "fiber": "fiber.config:FiberConfig",
}

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


def _installed() -> Iterator[Architecture]:
    for each in installed_families():
        yield from each.architectures


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
