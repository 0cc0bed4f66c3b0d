"""Metrics per group of samples, such as question types, phrase types or splits."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np


def with_groups(
    metric: Callable[..., dict[str, float]],
    groups: Sequence[Hashable],
    *columns: Any,
    **options: Any,
) -> dict[str, float]:
    """Compute a metric on all samples and, if any sample has a group, on each group.

    Args:
        metric: function that maps the columns to a dict of metrics.
        groups: group of each of the n samples.
        *columns: arrays or sequences of n entries.
        **options: keyword arguments of the metric.

    Returns:
        {"accuracy": 0.5, "color/accuracy": 0.6, ...}, with groups sorted by name.

    Raises:
        ValueError: if a column does not have n entries.
    """
    for number, column in enumerate(columns):
        if len(column) != len(groups):
            raise ValueError(
                f"column {number} has {len(column)} entries; expected {len(groups)}, the length of"
                " groups"
            )
    metrics = dict(metric(*columns, **options))
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    for group in sorted(members, key=str) if any(groups) else ():
        rows = members[group]
        parts = [
            column[rows] if isinstance(column, np.ndarray) else [column[i] for i in rows]
            for column in columns
        ]
        for name, value in metric(*parts, **options).items():
            metrics[f"{group or 'other'}/{name}"] = value
    return metrics
