"""Groups of similar embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

#: Rows that are compared with all others at a time.
_ROWS = 1024


def similar_groups(vectors: np.ndarray, similarity: float) -> list[list[int]]:
    """Group rows that are connected by products of at least `similarity`.

    Args:
        vectors: (n, D) float32.
        similarity: least product of two rows of a pair.

    Returns:
        Groups of two or more ascending rows, larger groups first.
    """
    pairs = (
        (a, b)
        for first, second, _ in similar_pairs(vectors, similarity)
        for a, b in zip(first, second, strict=True)
    )
    return connected(len(vectors), pairs)


def similar_pairs(
    vectors: np.ndarray, similarity: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (p,) rows, (p,) rows that are larger, and (p,) products of at least `similarity`."""
    for start in range(0, len(vectors), _ROWS):
        # Each pair once.
        products = vectors[start : start + _ROWS] @ vectors[start:].T
        first, second = np.nonzero(products >= similarity)
        is_later = second > first
        first, second = first[is_later], second[is_later]
        yield first + start, second + start, products[first, second]


def connected(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Group rows from 0 to `count` - 1 that pairs connect.

    Returns:
        Groups of two or more ascending rows, larger groups first.
    """
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for pair in pairs:
        low, high = sorted(root(int(row)) for row in pair)
        parent[high] = low
    members: dict[int, list[int]] = {}
    for row in range(count):
        members.setdefault(root(row), []).append(row)
    groups = [each for each in members.values() if len(each) > 1]
    return sorted(groups, key=lambda group: (-len(group), group))
