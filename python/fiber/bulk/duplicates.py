"""Groups of similar embeddings."""

from __future__ import annotations

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
    parent = np.arange(len(vectors))
    for first in range(0, len(vectors), _ROWS):
        # Each pair once.
        products = vectors[first : first + _ROWS] @ vectors[first:].T
        for one, other in zip(*np.nonzero(products >= similarity), strict=True):
            if other > one:
                low, high = sorted(_root(parent, first + int(each)) for each in (one, other))
                parent[high] = low
    members: dict[int, list[int]] = {}
    for row in range(len(vectors)):
        members.setdefault(_root(parent, row), []).append(row)
    groups = [each for each in members.values() if len(each) > 1]
    return sorted(groups, key=lambda group: (-len(group), group))


def _root(parent: np.ndarray, row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = int(parent[row])
    return row
