"""Presence: the probability that an image shows what a text names, from its best box's score.

A score ranks the boxes of one label. A `Calibration` maps the best score of a label to a
probability (Platt scaling), and has a default threshold of scores, both from data of which half of
the labels are absent. The map is increasing, so it changes no ranking within a kind of prompt.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fiber.config_io import check_ranges, from_dict
from fiber.messages import shown

#: Kinds of prompts: a phrase alone, phrases of a caption, classes.
Kind = Literal["phrase", "caption", "classes"]
KINDS: tuple[Kind, ...] = ("phrase", "caption", "classes")
#: Name of the file in a model folder, of the value of its field "kind", and its maximum size.
PRESENCE_FILE, FILE_KIND, MAX_PRESENCE_BYTES = "presence.json", "fiber presence", 1 << 16
#: Precision of the default thresholds, and the least share of the recall that they may leave.
PRECISION, RECALL_SHARE = 0.9, 0.9
#: Least number of present labels, and of absent ones, of a calibration.
LEAST_LABELS = 30

# Scores are limited to this distance from 0 and 1.
_MARGIN = 1e-6
_STEPS, _RIDGE = 100, 1e-6
_MAX_WEIGHT, _MAX_LABELS = 1e4, 2**40
#: Number of bins of reliability.
BINS = 10


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Presence of labels in one kind of prompt.

    It is sigmoid(slope x logit(score) + per_label x log(labels of the prompt) + intercept).

    Raises:
        ValueError: if a value is out of range.
    """

    slope: float
    intercept: float
    per_label: float = 0.0
    #: Default minimum score of a box, and the precision and recall of the best boxes above it: the
    #: share of right boxes, and the share of present labels with a right box.
    threshold: float
    precision: float
    recall: float
    #: Number of present and absent labels that it was fitted to; each half has the same weight.
    present: int
    absent: int

    def __post_init__(self) -> None:
        weight, count = (-_MAX_WEIGHT, _MAX_WEIGHT), (0, _MAX_LABELS)
        share = dict.fromkeys(("threshold", "precision", "recall"), (0.0, 1.0))
        ranges = {"intercept": weight, "per_label": weight, "present": count, "absent": count}
        check_ranges(self, "", {"slope": (_MARGIN, _MAX_WEIGHT), **ranges, **share})

    def presence(self, scores: np.ndarray, labels: np.ndarray | int = 1) -> np.ndarray:
        """Return probabilities (float32) for scores in [0, 1].

        Args:
            scores: of boxes, of any shape.
            labels: number of labels of the prompt, for all or for each.
        """
        logits = self.slope * _logit(scores) + self.per_label * np.log(np.maximum(labels, 1))
        return _sigmoid(logits + self.intercept).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Presence:
    """Calibrations of a model by kind of prompt; None for kinds that were not measured."""

    phrase: Calibration | None = None
    caption: Calibration | None = None
    classes: Calibration | None = None
    #: Data and split, for a reader.
    data: str = ""

    def of(self, kind: Kind) -> Calibration | None:
        """Return the calibration of a kind of prompt, if there is one."""
        return getattr(self, kind)


def to_json(presence: Presence) -> dict[str, Any]:
    """Return the content of presence.json."""
    return {"kind": FILE_KIND, "version": 1, **dataclasses.asdict(presence)}


def from_json(values: Any) -> Presence:
    """Read the content of presence.json.

    Raises:
        ValueError: if it is of another kind or version, or a value is invalid.
    """
    if not isinstance(values, dict) or values.get("kind") != FILE_KIND:
        raise ValueError(f"expected a JSON object whose field 'kind' is {FILE_KIND!r}")
    if values.get("version") != 1:
        raise ValueError(f"version is {shown(values.get('version'))}; expected 1")
    fields = {name: each for name, each in values.items() if name not in ("kind", "version")}
    return from_dict(Presence, fields)


def calibrate(
    scores: np.ndarray,
    present: np.ndarray,
    right: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    precision: float = PRECISION,
) -> Calibration:
    """Fit presence and a default threshold to the best scores of n labels.

    Present and absent labels have half of the weight each. The threshold has the best F1 of those
    whose precision is at least `precision` and which leave `RECALL_SHARE` of the recall; if there
    are none, of all.

    Args:
        scores: (n,) best scores, 0 for labels without a box.
        present: (n,) bool, whether the image shows what a label names.
        right: (n,) bool, whether the best box is right; False for absent labels.
        labels: (n,) numbers of labels of the prompts, if they differ.
        precision: precision of the threshold.

    Raises:
        ValueError: if there are too few labels of a half, or scores of present labels are not
            higher than those of absent ones.
    """
    for name, count in (("present", int(present.sum())), ("absent", int((~present).sum()))):
        if count < LEAST_LABELS:
            raise ValueError(f"{count} labels are {name}; expected {LEAST_LABELS} or more")
    weights = _halved(present)
    counts = np.zeros(len(scores)) if labels is None else np.log(np.maximum(labels, 1))
    columns = np.stack([_logit(scores), counts, np.ones(len(scores))], 1)
    slope, per_label, intercept = _fit(columns, present, weights)
    if slope <= _MARGIN:
        raise ValueError(
            f"scores of absent labels are as high as those of present ones (slope {slope:.3g});"
            " expected a model that tells them apart"
        )
    threshold, reached, recall = _threshold(scores, right, weights, precision)
    return Calibration(
        slope=float(slope),
        intercept=float(intercept),
        per_label=float(per_label),
        threshold=threshold,
        precision=reached,
        recall=recall,
        present=int(present.sum()),
        absent=int((~present).sum()),
    )


def false_answers(
    scores: np.ndarray, present: np.ndarray, right: np.ndarray, share: float = 0.95
) -> tuple[float, float]:
    """Return the share of absent labels that are answered at a share of the recall, and its score.

    Recall is the share of present labels whose best box is right. The score is the highest one at
    which recall is at least `share` of that without a threshold.

    Args:
        scores: (n,) best scores, 0 for labels without a box.
        present: (n,) bool, whether the image shows what a label names.
        right: (n,) bool, whether the best box is right; False for absent labels.
        share: share of the recall.
    """
    found = np.sort(scores[right])
    score = float(found[len(found) - int(np.ceil(share * len(found)))]) if len(found) else 0.0
    return float((scores[~present] >= score).mean()), score


def ranking_quality(scores: np.ndarray, present: np.ndarray) -> float:
    """Return the probability that a present label scores higher than an absent one (AUROC)."""
    order = np.argsort(scores, kind="stable")
    values, first, counts = np.unique(scores[order], return_index=True, return_counts=True)
    middle = first + (counts + 1) / 2
    ranks = middle[np.searchsorted(values, scores)]
    of_present, count = ranks[present].sum(), int(present.sum())
    pairs = count * (len(scores) - count)
    return float((of_present - count * (count + 1) / 2) / pairs)


def reliability(probabilities: np.ndarray, present: np.ndarray) -> list[tuple[float, float, float]]:
    """Return (mean probability, share of present labels, weight) of each bin with labels.

    The ten bins are of equal width, and present and absent labels have half of the weight each.
    """
    weights = _halved(present)
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    found = []
    for number in range(BINS):
        own = bins == number
        if (total := weights[own].sum()) > 0:
            mean = float((weights * probabilities)[own].sum() / total)
            found.append((mean, float((weights * present)[own].sum() / total), float(total)))
    return found


def calibration_error(probabilities: np.ndarray, present: np.ndarray) -> float:
    """Return the mean distance of probability and share in `reliability` (ECE)."""
    return sum(
        weight * abs(mean - share) for mean, share, weight in reliability(probabilities, present)
    )


def _halved(present: np.ndarray) -> np.ndarray:
    """Return weights with a sum of 1, half of them on present labels."""
    count = present.sum()
    return np.where(present, 0.5 / count, 0.5 / (len(present) - count))


def _fit(columns: np.ndarray, present: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fit a logistic regression of (n, k) columns by Newton's method.

    Targets are Platt's, slightly within 0 and 1, so that weights stay finite where scores separate
    all labels. A column that is the same for all but the last one gets the weight 0.
    """
    counts = present.sum(), len(present) - present.sum()
    targets = np.where(present, 1 - 1 / (counts[0] + 2), 1 / (counts[1] + 2))
    used = [*(np.ptp(columns[:, :-1], axis=0) > 0), True]
    inputs = columns[:, used]
    # The intercept, the last column, is not pulled to 0.
    ridge = _RIDGE * np.diag([*np.ones(inputs.shape[1] - 1), 0.0])
    solution = np.zeros(inputs.shape[1])
    for _ in range(_STEPS):
        probabilities = _sigmoid(inputs @ solution)
        spread = weights * np.maximum(probabilities * (1 - probabilities), 1e-12)
        gradient = inputs.T @ (weights * (probabilities - targets)) + ridge @ solution
        step = np.linalg.solve(inputs.T @ (spread[:, None] * inputs) + ridge, gradient)
        # Steps of bounded length, since those from afar overshoot.
        solution -= step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    found = np.zeros(columns.shape[1])
    found[used] = solution
    return found


def _threshold(
    scores: np.ndarray, right: np.ndarray, weights: np.ndarray, precision: float
) -> tuple[float, float, float]:
    """Return a threshold with its precision and recall; see `calibrate`."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum((weights * right)[order])
    reached = hits / np.cumsum(weights[order])
    recall = hits / 0.5
    # Labels with the same score are answered together.
    last = np.append(np.diff(scores[order]) != 0, True)
    f1 = 2 * reached * recall / np.maximum(reached + recall, 1e-12)
    enough = last & (reached >= precision) & (recall >= RECALL_SHARE * recall[-1])
    chosen = np.argmax(np.where(enough if enough.any() else last, f1, -1.0))
    values = (scores[order][chosen], reached[chosen], recall[chosen])
    score, shared, found = (min(1.0, float(value)) for value in values)
    return score, shared, found


def _logit(scores: np.ndarray) -> np.ndarray:
    inside = np.clip(np.asarray(scores, np.float64), _MARGIN, 1 - _MARGIN)
    return np.log(inside) - np.log1p(-inside)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    # Both halves without overflow.
    return np.exp(-np.logaddexp(0.0, -logits))
