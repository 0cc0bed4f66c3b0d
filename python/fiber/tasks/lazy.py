"""Objects that are imported when they are first used, and the packages that declare them."""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint
from typing import Any

from fiber.messages import printable

#: Maximum number of characters of the name of a package.
_MAX_PACKAGE = 200


def load(path: str) -> Any:
    """Import the object that "package.module:name" names.

    Raises:
        ImportError: if the module cannot be imported or has no such name; the message gives `path`.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ImportError(f"{path}: {error}") from error


def package_of(entry: EntryPoint) -> str:
    """Return the name and version of the package that declares an entry point."""
    dist = entry.dist
    return printable(f"{dist.name} {dist.version}" if dist else "an unknown package", _MAX_PACKAGE)
