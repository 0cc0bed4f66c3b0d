"""Exported graphs without torch: what `fiber export` wrote, checked, run and asked.

No file of this folder needs torch, but for graphs in the format of `torch.export`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fiber.runtime.graphs import Graphs
    from fiber.runtime.loading import load
    from fiber.runtime.model import GraphModel

__all__ = ["GraphModel", "Graphs", "load"]

# Module of each public name, imported on first use.
_HOMES = {
    "GraphModel": "fiber.runtime.model",
    "Graphs": "fiber.runtime.graphs",
    "load": "fiber.runtime.loading",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fiber.runtime' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
