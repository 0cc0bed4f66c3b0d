"""What the task asks of a network, whatever its family."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class CountsObjects(Protocol):
    """Counts the objects in images. Models with this ability have the head "count"."""

    def count_logits(self, images: Tensor) -> Tensor:
        """Compute logits of the numbers 0 to C - 1: (B, 3, H, W) -> (B, C)."""
        ...
