"""Metrics per group of samples: question type, phrase type, split."""

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
        metric: Function of this package whose arguments have one entry per sample.
        groups: Group of each of n samples.
        *columns: Arguments of the metric, arrays or sequences of n entries.
        **options: Keyword arguments of the metric.

    Returns:
        For each group, sorted by name, the metric's dict and "count", its number of samples.

    Raises:
        ValueError: If a column does not have n entries.
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
