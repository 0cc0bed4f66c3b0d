"""Random draws that depend on a key only: (seed, stream, index).

Every sample of a generated data set has its own counter-based stream, so that it comes out the
same whatever else is generated before it, after it or beside it. Only the raw bits of numpy's
Philox are used: they are fixed by the algorithm, while the distributions of
`numpy.random.Generator` may change between releases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

ItemT = TypeVar("ItemT")

_BLOCK = 64
_STREAM_BITS = 48


class Draws:
    """Draws of one sample, in a fixed order.

    Args:
        seed: any integer >= 0, below 2 ** 64.
        stream: what the draws are for; different streams are independent.
        index: which sample, below 2 ** 48.
    """

    def __init__(self, seed: int, stream: int, index: int) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; expected 0 <= seed < 2 ** 64")
        self._bits = np.random.Philox(key=seed << 64 | stream << _STREAM_BITS | index)
        self._block: list[float] = []

    def unit(self) -> float:
        """Draw from [0, 1) with 53 random bits."""
        if not self._block:
            raw = self._bits.random_raw(_BLOCK)
            self._block = ((raw >> np.uint64(11)) * 2.0**-53).tolist()
        return self._block.pop()

    def between(self, low: float, high: float) -> float:
        """Draw from [low, high)."""
        return low + (high - low) * self.unit()

    def below(self, count: int) -> int:
        """Draw one of 0 .. count - 1."""
        return int(self.unit() * count)

    def coin(self, probability: float = 0.5) -> bool:
        """Return True with the probability given."""
        return self.unit() < probability

    def choice(self, items: Sequence[ItemT]) -> ItemT:
        """Draw one of the items."""
        return items[int(self.unit() * len(items))]

    def weighted(self, items: Sequence[ItemT], weights: Sequence[float]) -> ItemT:
        """Draw one of the items with probabilities in proportion to the weights."""
        left = self.unit() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            left -= weight
            if left < 0:
                return item
        return items[-1]

    def shuffled(self, items: Sequence[ItemT]) -> list[ItemT]:
        """Return the items in random order."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def some(self, items: Sequence[ItemT], count: int) -> list[ItemT]:
        """Draw different items in random order; all of them where there are no more."""
        left = list(items)
        for first in range(min(count, len(left))):
            other = first + self.below(len(left) - first)
            left[first], left[other] = left[other], left[first]
        return left[:count]

    def bytes_array(self, count: int) -> np.ndarray:
        """Return (count,) uint8, every bit random."""
        words = self._bits.random_raw((count + 7) // 8)
        return words.astype("<u8", copy=False).view(np.uint8)[:count]
