"""A metric for each group of samples: question type, kind of phrase, split."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np


def by_group(
    metric: Callable[..., dict[str, float]],
    groups: Sequence[Hashable],
    *columns: Any,
    **options: Any,
) -> dict[Any, dict[str, float]]:
    """Compute a metric on the samples of each group.

    Args:
        metric: a function of this package that takes one entry per sample in each argument.
        groups: group of each of n samples.
        *columns: the metric's arguments, n entries each: arrays or sequences.
        **options: handed to the metric as they are.

    Returns:
        For each group, sorted by name, what the metric returns and "count", its samples.

    Raises:
        ValueError: if a column has not n entries.
    """
    for number, column in enumerate(columns):
        if len(column) != len(groups):
            raise ValueError(
                f"column {number} has {len(column)} entries; expected {len(groups)}, one for each"
                " group entry"
            )
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    results = {}
    for group in sorted(members, key=str):
        rows = members[group]
        parts = [
            column[rows] if isinstance(column, np.ndarray) else [column[i] for i in rows]
            for column in columns
        ]
        results[group] = {**metric(*parts, **options), "count": float(len(rows))}
    return results
