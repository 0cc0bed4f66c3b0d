"""Results as `supervision.Detections`, for its annotators, trackers and zones."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np


class _Found(Protocol):
    """Boxes or segments with labels and scores."""

    @property
    def boxes_xyxy(self) -> np.ndarray: ...
    @property
    def masks(self) -> np.ndarray | None: ...
    @property
    def scores(self) -> np.ndarray: ...
    @property
    def labels(self) -> list[str]: ...
    @property
    def indices(self) -> np.ndarray: ...


def to_supervision(found: _Found) -> Any:
    """Return boxes or segments as `supervision.Detections`, with labels as `class_name`.

    Raises:
        ModuleNotFoundError: if supervision is not installed.
    """
    try:
        supervision: Any = importlib.import_module("supervision")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "to_supervision needs the package supervision: pip install supervision",
            name="supervision",
        ) from error
    return supervision.Detections(
        xyxy=found.boxes_xyxy,
        mask=found.masks,
        confidence=found.scores,
        class_id=found.indices,
        data={"class_name": np.array(found.labels, dtype=str)},
    )
