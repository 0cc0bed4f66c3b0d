"""Chance and blind baselines of box metrics.

`*_chance` functions choose at random among the boxes of all objects of an image. `*_blind`
functions predict the most frequent training boxes without the image. Both return the keys of the
metric itself.

Blind boxes are in units of the image's sides, [0, 1], so that images of any size are counted
together; IoU and GIoU are the same in these units as in pixels.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiber.evaluation.baselines import hit_chance
from fiber.metrics.boxes import as_boxes, pairwise_giou, pairwise_iou
from fiber.metrics.detection import SIZES, ScoredBoxes, TrueBoxes, average_precision
from fiber.metrics.grounding import FOUND_AT, merged, phrase_recall, referring_accuracy
from fiber.metrics.matching import mean

#: Training boxes sampled as candidates, and to score them; more change little.
CANDIDATES, TRIED = 256, 2048


class FrequentBoxes(NamedTuple):
    """Boxes that together match as many training boxes as possible."""

    #: (k, 4) in the order of choice, best first.
    boxes_xyxy: NDArray[np.float64]
    #: (k,) fraction of the training boxes that each matches with IoU >= 0.5.
    shares: NDArray[np.float64]


def frequent_boxes(boxes_unit: ArrayLike, k: int = 1, *, seed: int = 0) -> FrequentBoxes:
    """Choose k boxes greedily to match the most training boxes at IoU 0.5.

    Each next box matches the most training boxes that are not matched yet.

    Args:
        boxes_unit: (n, 4) training boxes.
        k: number of boxes; fewer are returned once every box is matched.
        seed: of the sample of training boxes that is used for large n.
    """
    boxes = as_boxes(boxes_unit)
    order = np.random.default_rng(seed).permutation(len(boxes))
    candidates, tried = boxes[order[:CANDIDATES]], boxes[order[:TRIED]]
    met = pairwise_iou(candidates, tried) >= FOUND_AT
    left, chosen = np.ones(len(tried), bool), []
    while len(chosen) < k and left.any() and len(candidates):
        gains = (met & left).sum(1)
        best = int(np.argmax(gains))
        if gains[best] == 0:
            break
        chosen.append(best)
        left &= ~met[best]
    return FrequentBoxes(candidates[chosen], met[chosen].mean(1) if chosen else np.zeros(0))


def referring_chance(
    object_boxes: Sequence[ArrayLike], truths: ArrayLike, ks: Sequence[int] = (1,)
) -> dict[str, float]:
    """Expected `grounding.referring_accuracy` of the image's objects in random order.

    Args:
        object_boxes: for each of n expressions, (m, 4) boxes of all objects of its image.
        truths: (n, 4) ground-truth boxes.
        ks: cutoffs of the ranking.
    """
    truths = as_boxes(truths)
    counts = []
    for boxes, truth in zip(object_boxes, truths, strict=True):
        iou, giou = pairwise_iou(boxes, truth[None]), pairwise_giou(boxes, truth[None])
        counts.append((len(iou), int((iou >= FOUND_AT).sum()), int((giou >= FOUND_AT).sum())))
    return _expected({"accuracy": 1, "giou_accuracy": 2}, counts, ks)


def phrase_chance(
    object_boxes: Sequence[ArrayLike],
    truths: Sequence[ArrayLike],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Expected `grounding.phrase_recall` of the image's objects in random order.

    Args:
        object_boxes: for each of n phrases, (m, 4) boxes of all objects of its image.
        truths: for each phrase (g, 4) boxes, at least one.
        ks: cutoffs of the ranking.
    """
    counts = []
    for boxes, own in zip(object_boxes, truths, strict=True):
        own = as_boxes(own)
        any_hits = (pairwise_iou(boxes, own) >= FOUND_AT).any(1)
        merged_hits = (pairwise_iou(boxes, merged(own)) >= FOUND_AT).any(1)
        counts.append((len(as_boxes(boxes)), int(any_hits.sum()), int(merged_hits.sum())))
    results = _expected({"any_recall": 1, "merged_recall": 2}, counts, ks)
    for name, column in (("any", 1), ("merged", 2)):
        results[f"{name}_upper_bound"] = mean(np.array([c[column] > 0 for c in counts]))
    return results


def _expected(
    columns: dict[str, int], counts: Sequence[tuple[int, ...]], ks: Sequence[int]
) -> dict[str, float]:
    """Mean chance of a hit among k; counts are (objects, right by the first metric, ...)."""
    return {
        f"{name}_at_{k}": mean(np.array([hit_chance(c[0], c[column], k) for c in counts]))
        for name, column in columns.items()
        for k in ks
    }


def referring_blind(
    training_texts: Sequence[str],
    training_boxes_unit: ArrayLike,
    texts: Sequence[str],
    truths_unit: ArrayLike,
    ks: Sequence[int] = (1,),
    *,
    per_text: bool = True,
) -> dict[str, float]:
    """`grounding.referring_accuracy` of the most frequent boxes of the training split.

    Args:
        training_texts: (m,) expressions of the training split.
        training_boxes_unit: (m, 4) box of each.
        texts: (n,) evaluated expressions.
        truths_unit: (n, 4) box of each.
        ks: cutoffs of the ranking.
        per_text: whether to count per expression string where it is frequent enough in training
            (see `guess_boxes`); otherwise over all expressions only.
    """
    pairs = zip(training_texts, as_boxes(training_boxes_unit)[:, None], strict=True)
    guesses = guess_boxes(pairs, texts, max(ks), per_text=per_text)
    return referring_accuracy(guesses, truths_unit, ks)


def phrase_blind(
    training_phrases: Sequence[str],
    training_boxes_unit: Sequence[ArrayLike],
    phrases: Sequence[str],
    truths_unit: Sequence[ArrayLike],
    ks: Sequence[int] = (1, 5, 10),
    *,
    per_text: bool = True,
) -> dict[str, float]:
    """`grounding.phrase_recall` of the most frequent boxes of the training split.

    Args:
        training_phrases: (m,) phrases of the training split.
        training_boxes_unit: (g, 4) boxes of each.
        phrases: (n,) evaluated phrases.
        truths_unit: (g, 4) boxes of each.
        ks: cutoffs of the ranking; the largest is the number of predictions.
        per_text: as in `referring_blind`.
    """
    pairs = zip(training_phrases, map(as_boxes, training_boxes_unit), strict=True)
    guesses = guess_boxes(pairs, phrases, max(ks), per_text=per_text)
    return phrase_recall(guesses, truths_unit, ks)


def guess_boxes(
    training: Iterable[tuple[str, NDArray[np.float64]]],
    texts: Sequence[str],
    k: int,
    *,
    per_text: bool = True,
    least: int = 8,
) -> list[NDArray[np.float64]]:
    """Predict up to k boxes for each text from training pairs of a text and its (g, 4) boxes.

    A text's own training boxes come first if there are at least `least`, since fewer are
    unreliable; then come the most frequent boxes of all texts.
    """
    by_text: dict[str, list[NDArray[np.float64]]] = {}
    for text, boxes in training:
        by_text.setdefault(text, []).append(boxes)
    everything = [boxes for parts in by_text.values() for boxes in parts]
    overall = frequent_boxes(np.concatenate(everything) if everything else [], k).boxes_xyxy
    known: dict[str, NDArray[np.float64]] = {}
    for text in set(texts) if per_text else ():
        own = np.concatenate(by_text[text]) if text in by_text else np.zeros((0, 4))
        if len(own) >= least:
            first = frequent_boxes(own, k).boxes_xyxy
            known[text] = np.concatenate([first, overall])[:k]
    return [known.get(text, overall) for text in texts]


def detection_chance(
    truths: Sequence[TrueBoxes], *, seed: int = 0, repeats: int = 5
) -> dict[str, float]:
    """`detection.average_precision` of the true boxes with random classes and scores.

    Metrics of object sizes without true boxes are omitted. This is the only sampled baseline here:
    it averages `repeats` draws.
    """
    random = np.random.default_rng(seed)
    classes = sorted({label for true in truths for label in true.labels}, key=str)
    totals: list[dict[str, float]] = []
    for _ in range(repeats):
        detections = []
        for true in truths:
            count = len(true.labels)
            labels = [classes[i] for i in random.integers(0, max(1, len(classes)), count)]
            detections.append(ScoredBoxes(true.boxes_xyxy, random.random(count), labels))
        totals.append(average_precision(detections, truths))
    means = {key: mean(np.array([total[key] for total in totals])) for key in totals[0]}
    return {key: value for key, value in means.items() if value == value or not key.endswith(SIZES)}


def detection_blind(
    training_truths_unit: Sequence[TrueBoxes], truths_unit: Sequence[TrueBoxes], k: int = 10
) -> dict[str, float]:
    """`detection.average_precision` of each class's k most frequent boxes in every image.

    A box's score is the fraction of the class's training boxes that it matches. Metrics of object
    sizes are omitted.
    """
    by_class: dict[Hashable, list[NDArray[np.float64]]] = {}
    for true in training_truths_unit:
        for box, label in zip(as_boxes(true.boxes_xyxy), true.labels, strict=True):
            by_class.setdefault(label, []).append(box)
    boxes, scores, labels = [np.zeros((0, 4))], [np.zeros(0)], []
    for label in sorted(by_class, key=str):
        found = frequent_boxes(by_class[label], k)
        boxes.append(found.boxes_xyxy)
        scores.append(found.shares)
        labels += [label] * len(found.shares)
    guess = ScoredBoxes(np.concatenate(boxes), np.concatenate(scores), labels)
    numbers = average_precision([guess] * len(truths_unit), truths_unit)
    # Areas in units of the image do not determine areas in pixels.
    return {name: value for name, value in numbers.items() if not name.endswith(SIZES)}
