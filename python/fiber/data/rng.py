"""Counter-based random numbers that depend only on a key (seed, stream, index).

Every sample of a generated dataset has its own random numbers, so it does not depend on other
samples or their order. Only the raw bits of NumPy's Philox are used: they are fixed by the
algorithm, while the distributions of `numpy.random.Generator` may change between releases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

ItemT = TypeVar("ItemT")

_BLOCK = 64
#: Number of epochs before the numbers of `Rng.of_record` repeat, and maximum number of records.
EPOCHS, MAX_RECORDS = 2**16, 2**32


class Rng:
    """Random number generator of one sample.

    Args:
        seed: integer in [0, 2 ** 64).
        stream: number of the stream, one for each purpose; different streams are independent.
        index: index of the sample, below 2 ** 48.
    """

    def __init__(self, seed: int, stream: int, index: int) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; expected 0 <= seed < 2 ** 64")
        self._bits = np.random.Philox(key=seed << 64 | stream << 48 | index)
        self._block: list[float] = []

    @classmethod
    def of_record(cls, seed: int, stream: int, epoch: int, index: int) -> Rng:
        """Create the generator of a record in an epoch; `index` is below `MAX_RECORDS`."""
        return cls(seed, stream, (epoch % EPOCHS) * MAX_RECORDS + index)

    def random(self) -> float:
        """Return a random number in [0, 1) with 53 random bits."""
        if not self._block:
            raw = self._bits.random_raw(_BLOCK)
            self._block = ((raw >> np.uint64(11)) * 2.0**-53).tolist()
        return self._block.pop()

    def uniform(self, low: float, high: float) -> float:
        """Return a random number in [low, high)."""
        return low + (high - low) * self.random()

    def integer(self, count: int) -> int:
        """Return a random integer in [0, count)."""
        return int(self.random() * count)

    def bernoulli(self, probability: float = 0.5) -> bool:
        """Return True with the given probability."""
        return self.random() < probability

    def choice(self, items: Sequence[ItemT]) -> ItemT:
        """Return a random item."""
        return items[int(self.random() * len(items))]

    def weighted_choice(self, items: Sequence[ItemT], weights: Sequence[float]) -> ItemT:
        """Return a random item, with probabilities proportional to the weights."""
        left = self.random() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            left -= weight
            if left < 0:
                return item
        return items[-1]

    def shuffled(self, items: Sequence[ItemT]) -> list[ItemT]:
        """Return the items in random order."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.integer(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def permuted(self, count: int) -> Iterator[int]:
        """Yield the integers from 0 to `count` - 1 in random order, without listing all of them."""
        moved: dict[int, int] = {}
        for first in range(count):
            other = first + self.integer(count - first)
            yield moved.get(other, other)
            moved[other] = moved.get(first, first)

    def sample(self, items: Sequence[ItemT], count: int) -> list[ItemT]:
        """Return `count` distinct items in random order, or all items if there are fewer."""
        left = list(items)
        for first in range(min(count, len(left))):
            other = first + self.integer(len(left) - first)
            left[first], left[other] = left[other], left[first]
        return left[:count]

    def bytes_array(self, count: int) -> np.ndarray:
        """Return random bytes as a (count,) uint8 array."""
        words = self._bits.random_raw((count + 7) // 8)
        return words.astype("<u8", copy=False).view(np.uint8)[:count]
