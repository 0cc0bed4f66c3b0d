"""Thresholds of boxes, and the selection of boxes by them."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fiber.messages import shown
from fiber.models.features import DetectorOutput
from fiber.postprocess.box_masks import FoundMasks, ground_phrase_masks
from fiber.postprocess.find import FoundBoxes, TokenMap, detect_boxes, ground_phrases

if TYPE_CHECKING:
    from torch import Tensor


class Thresholds(NamedTuple):
    """Thresholds for box selection."""

    #: Minimum score, in [0, 1].
    score: float
    #: IoU above which the lower-scored of two boxes with the same label is removed.
    nms: float
    #: Maximum number of boxes per image, or None for no limit.
    max_detections: int | None
    #: Maximum number of boxes per phrase, or None for no limit (in detection).
    boxes_per_phrase: int | None = None

    def check(self) -> None:
        """Raise TypeError or ValueError if a threshold has the wrong type or is out of range."""
        for name, value in (("score_threshold", self.score), ("nms_threshold", self.nms)):
            if not isinstance(value, numbers.Real):
                raise TypeError(f"{name} must be a number between 0 and 1, got {shown(value)}")
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, such as 0.3, got {value}")
        counts = {"max_detections": self.max_detections, "boxes_per_phrase": self.boxes_per_phrase}
        for name, count in counts.items():
            if count is not None and not isinstance(count, numbers.Integral):
                raise TypeError(f"{name} must be an integer, got {shown(count)}")
            if count is not None and count < 1:
                raise ValueError(f"{name} must be 1 or more, got {count}")

    def select(
        self, output: DetectorOutput, token_maps: Sequence[TokenMap], *sizes: Tensor
    ) -> list[FoundBoxes]:
        """Select the boxes of each pair: of phrases if they have a limit, else of classes."""
        if self.boxes_per_phrase is not None:
            return ground_phrases(
                output,
                token_maps,
                *sizes,
                boxes_per_phrase=self.boxes_per_phrase,
                score_threshold=self.score,
                nms_threshold=self.nms,
            )
        found = detect_boxes(
            output,
            token_maps,
            *sizes,
            score_threshold=0.0,
            nms_threshold=self.nms,
            max_detections=self.max_detections,
        )
        # As in grounding, apply the threshold to the final score, which includes centerness.
        return [FoundBoxes(*(part[f.scores >= self.score] for part in f)) for f in found]

    def select_masks(
        self, output: DetectorOutput, token_maps: Sequence[TokenMap], *sizes: Tensor
    ) -> list[FoundMasks]:
        """Select the boxes of phrases of each pair, with their masks."""
        return ground_phrase_masks(
            output,
            token_maps,
            *sizes,
            boxes_per_phrase=self.boxes_per_phrase or 1,
            score_threshold=self.score,
            nms_threshold=self.nms,
        )
