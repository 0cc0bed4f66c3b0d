"""Names of objects that are imported when they are first used, as in "package.module:name"."""

from __future__ import annotations

import importlib
from typing import Any


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
