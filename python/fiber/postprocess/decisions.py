"""Decide which boxes are answers: presence, thresholds, negatives and overlaps between labels."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fiber.data.prompts.classes import Prompt
from fiber.messages import shown
from fiber.metrics.presence import Calibration, Kind, Presence
from fiber.ops.arrays import functions_of
from fiber.ops.nms import nms
from fiber.postprocess.find import FoundBoxes

#: IoU from which a box of a negative is the same region.
SAME_REGION = 0.5
#: Least number of boxes per phrase, so that regions of negatives and of phrases are compared.
COMPARED_BOXES = 20
_NOT_CALIBRATED = (
    "this model has no presence for {}: it was not calibrated; `fiber calibrate MODEL --data DATA`"
    " calibrates a model folder, and score_threshold needs no calibration"
)
_NAMES = {"phrase": "phrases", "caption": "phrases of a caption", "classes": "classes"}


class ImagePrompts(NamedTuple):
    """Prompts of one image, and what their labels are."""

    prompts: Sequence[Prompt]
    #: Number of labels that are asked for; those after them are negatives.
    asked: int


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Rules that select the answers among all boxes of an image."""

    kind: Kind
    #: Calibrations of the model, or None.
    presence: Presence | None
    #: Minimum score, inclusive.
    score: float
    #: Minimum presence of a label, inclusive.
    least_presence: float | None = None
    class_agnostic: bool = False
    #: IoU above which the worse of two boxes is dropped if `class_agnostic`.
    nms: float = 0.6
    boxes_per_phrase: int | None = None
    max_detections: int | None = None

    def check(self) -> None:
        """Raise TypeError or ValueError if an option is invalid or the model lacks presence."""
        if not isinstance(self.class_agnostic, bool):
            raise TypeError(
                f"class_agnostic must be True or False, got {shown(self.class_agnostic)}"
            )
        least = self.least_presence
        if least is None:
            return
        if not isinstance(least, numbers.Real):
            raise TypeError(f"presence_threshold must be a number, got {shown(least)}")
        if not 0 <= least <= 1:
            raise ValueError(f"presence_threshold must be between 0 and 1, got {least}")
        if self._calibration is None:
            raise ValueError(f"presence_threshold: {_NOT_CALIBRATED.format(_NAMES[self.kind])}")

    @property
    def _calibration(self) -> Calibration | None:
        return None if self.presence is None else self.presence.of(self.kind)

    def decide(
        self, found: FoundBoxes, asked: ImagePrompts
    ) -> tuple[FoundBoxes, np.ndarray, np.ndarray | None]:
        """Select the answers in an image.

        Args:
            found: all boxes of all labels, best first.
            asked: the prompts of the image.

        Returns:
            The boxes as arrays of numpy, the indices of these in `found`, and the (K,) presence of
            the K labels that are asked for, or None without a calibration.
        """
        f: Any = functions_of(found.scores)
        boxes = f.as_numpy(f.float32(found.boxes_xyxy))
        scores = f.as_numpy(f.float32(found.scores))
        labels = f.as_numpy(found.label_indices)
        values, presence = self._values(scores, labels, asked)
        kept = (labels < asked.asked) & (scores >= self.score)
        if presence is not None and self.least_presence is not None:
            kept &= np.append(presence >= self.least_presence, False)[
                np.minimum(labels, asked.asked)
            ]
        kept &= ~_fits_better(boxes, values, labels >= asked.asked)
        chosen = np.flatnonzero(kept)
        if self.class_agnostic:
            every = np.zeros(len(chosen), np.int64)
            found_best: Any = nms(boxes[chosen], values[chosen], every, self.nms)  # type: ignore[arg-type]
            chosen = chosen[np.sort(found_best)]
        if self.boxes_per_phrase is not None:
            counts = np.zeros(asked.asked + 1, int)
            first = []
            for number in chosen:
                counts[labels[number]] += 1
                if counts[labels[number]] <= self.boxes_per_phrase:
                    first.append(number)
            chosen = np.array(first, int)
        chosen = chosen[: self.max_detections]
        answers: Any = (boxes[chosen], scores[chosen], labels[chosen])
        return FoundBoxes(*answers), chosen, presence

    def _values(
        self, scores: np.ndarray, labels: np.ndarray, asked: ImagePrompts
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return comparable values of boxes of different prompts, and the presence of labels.

        The values are calibrated scores, if all kinds of prompts are calibrated, else scores.
        """
        total = sum(len(prompt.labels) for prompt in asked.prompts)
        best = np.zeros(total, np.float32)
        np.maximum.at(best, labels, scores)
        lengths = np.ones(total, int)
        alone = np.arange(total) >= asked.asked
        if self.kind == "classes":
            alone[:] = False
        for prompt in asked.prompts:
            lengths[prompt.first_label : prompt.first_label + len(prompt.labels)] = len(
                prompt.labels
            )
        own = self._calibration
        if own is None or self.presence is None:
            return scores, None
        presence = own.presence(best[: asked.asked], lengths[: asked.asked])
        of_negatives = self.presence.phrase
        if alone.any() and of_negatives is None:
            return scores, presence
        values = own.presence(scores, lengths[labels])
        if of_negatives is not None:
            values = np.where(alone[labels], of_negatives.presence(scores), values)
        return values, presence


def default_threshold(presence: Presence | None, kind: Kind, uncalibrated: float) -> float:
    """Return the default minimum score: the calibrated one of a kind of prompt, if there is one."""
    own = None if presence is None else presence.of(kind)
    return uncalibrated if own is None else own.threshold


def _fits_better(boxes: np.ndarray, values: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return which boxes are a region that has a higher value as one of a negative."""
    if not negative.any():
        return np.zeros(len(boxes), bool)
    same = _iou(boxes, boxes[negative]) >= SAME_REGION
    return np.any(same & (values[negative][None] > values[:, None]), axis=1)


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the (n, m) IoUs of boxes, 0 for empty ones, without torchvision, as graphs run."""
    first, second = first[:, None].astype(np.float64), second[None].astype(np.float64)
    low = np.maximum(first[..., :2], second[..., :2])
    shared = np.maximum(np.minimum(first[..., 2:], second[..., 2:]) - low, 0).prod(-1)
    areas = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (first, second)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-12)
