"""Whether an operation is traced, for those that have another form in exported graphs."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Return whether `torch.export` traces; with torch 2.6, also whether `torch.compile` does."""
    return getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)()
