"""Chance and blind baselines for box metrics.

`*_chance` functions pick at random among all object boxes of an image. `*_blind` functions predict
the most frequent training boxes, without seeing the image. Both return dicts with the same keys as
the metric.

Blind baselines use normalized [0, 1] coordinates, which makes images of all sizes comparable and
does not change IoU or GIoU.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiber.evaluation.baselines import hit_chance
from fiber.metrics.boxes import as_boxes, overlaps_with_own, pairwise_giou, pairwise_iou
from fiber.metrics.detection import SIZES, ScoredBoxes, TrueBoxes, average_precision
from fiber.metrics.grounding import FOUND_AT, merged, phrase_recall, referring_accuracy
from fiber.metrics.matching import mean

#: Numbers of training boxes sampled as candidates, and to score the candidates. Larger samples
#: hardly change the results.
CANDIDATES, TRIED = 256, 2048
#: Minimum number of training boxes for a text's own boxes to be reliable.
RELIABLE = 8
#: Random draws averaged by `detection_chance`.
DRAWS = 5


class FrequentBoxes(NamedTuple):
    """Boxes that together match as many training boxes as possible."""

    #: (k, 4), best first.
    boxes_xyxy: NDArray[np.float64]
    #: (k,) fraction of the training boxes that each box matches at IoU >= 0.5.
    shares: NDArray[np.float64]


def frequent_boxes(boxes_unit: ArrayLike, k: int = 1, *, seed: int = 0) -> FrequentBoxes:
    """Greedily choose k of n training boxes, each matching the most boxes not matched so far.

    `boxes_unit` is (n, 4). Boxes match at IoU >= 0.5. Fewer than k boxes are returned if they match
    all boxes. The boxes are subsampled if n is large.
    """
    boxes = as_boxes(boxes_unit)
    order = np.random.default_rng(seed).permutation(len(boxes))
    candidates, tried = boxes[order[:CANDIDATES]], boxes[order[:TRIED]]
    matches = pairwise_iou(candidates, tried) >= FOUND_AT
    unmatched, chosen = np.ones(len(tried), bool), []
    while len(chosen) < k and len(candidates):
        gains = (matches & unmatched).sum(1)
        best = int(np.argmax(gains))
        if gains[best] == 0:
            break
        chosen.append(best)
        unmatched &= ~matches[best]
    return FrequentBoxes(candidates[chosen], matches[chosen].mean(1) if chosen else np.zeros(0))


def referring_chance(
    object_boxes: Sequence[ArrayLike], truths: ArrayLike, ks: Sequence[int] = (1,)
) -> dict[str, float]:
    """Compute the expected `grounding.referring_accuracy` of randomly ranked image objects.

    `object_boxes` contains one (m, 4) array per expression, with the boxes of all objects in the
    image. `truths` is (n, 4), one box per expression.
    """
    own = as_boxes(truths)
    ious = overlaps_with_own(pairwise_iou, object_boxes, own)
    gious = overlaps_with_own(pairwise_giou, object_boxes, own)
    hits = [(iou >= FOUND_AT, giou >= FOUND_AT) for iou, giou in zip(ious, gious, strict=True)]
    return _expected(("accuracy", "giou_accuracy"), hits, ks)


def phrase_chance(
    object_boxes: Sequence[ArrayLike],
    truths: Sequence[ArrayLike],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Compute the expected `grounding.phrase_recall` of randomly ranked image objects.

    Arguments are as in `referring_chance`, but `truths` has (g, 4) boxes per phrase, with g >= 1.
    """
    hits = []
    for boxes, own in zip(object_boxes, map(as_boxes, truths), strict=True):
        overlaps = pairwise_iou(boxes, own), pairwise_iou(boxes, merged(own))
        hits.append(tuple((overlap >= FOUND_AT).any(1) for overlap in overlaps))
    results = _expected(("any_recall", "merged_recall"), hits, ks)
    for column, name in enumerate(("any", "merged")):
        results[f"{name}_upper_bound"] = mean(np.array([hit[column].any() for hit in hits]))
    return results


def _expected(
    names: Sequence[str], hits: Sequence[Sequence[NDArray[np.bool_]]], ks: Sequence[int]
) -> dict[str, float]:
    """Return the mean probability that k randomly chosen objects include a hit.

    `hits[i][j]` is an (m,) bool array, True for the objects of sample i that are hits for metric j.
    """
    return {
        f"{name}_at_{k}": mean(
            np.array([hit_chance(len(hit[column]), int(hit[column].sum()), k) for hit in hits])
        )
        for column, name in enumerate(names)
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
    """Compute `grounding.referring_accuracy` of the boxes predicted by `guess_boxes`.

    Boxes are (m, 4) for training and (n, 4) for evaluation, one per expression.
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
    """Compute `grounding.phrase_recall` of the boxes predicted by `guess_boxes`.

    Each phrase has (g, 4) boxes, with g >= 1.
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
) -> list[NDArray[np.float64]]:
    """Predict up to k boxes per text from training pairs of a text and its (g, 4) boxes.

    With `per_text`, predictions for a text with at least `RELIABLE` training boxes start with the
    most frequent boxes of that text. All other predictions are the most frequent boxes over all
    texts.
    """
    by_text: dict[str, list[NDArray[np.float64]]] = {}
    for text, boxes in training:
        by_text.setdefault(text, []).append(boxes)
    everything = [boxes for parts in by_text.values() for boxes in parts]
    overall = frequent_boxes(np.concatenate(everything) if everything else [], k).boxes_xyxy
    known: dict[str, NDArray[np.float64]] = {}
    for text in by_text.keys() & set(texts) if per_text else ():
        own = np.concatenate(by_text[text])
        if len(own) >= RELIABLE:
            first = frequent_boxes(own, k).boxes_xyxy
            known[text] = np.concatenate([first, overall])[:k]
    return [known.get(text, overall) for text in texts]


def detection_chance(truths: Sequence[TrueBoxes], *, seed: int = 0) -> dict[str, float]:
    """Compute `detection.average_precision` of ground-truth boxes with random classes and scores.

    The result is the mean over `DRAWS` random draws, while all other chance baselines are exact.
    Metrics for a box size are dropped if there are no ground-truth boxes of that size.
    """
    random = np.random.default_rng(seed)
    classes = sorted({label for true in truths for label in true.labels}, key=str)
    draws: list[dict[str, float]] = []
    for _ in range(DRAWS):
        detections = []
        for true in truths:
            count = len(true.labels)
            labels = [classes[i] for i in random.integers(0, max(1, len(classes)), count)]
            detections.append(ScoredBoxes(true.boxes_xyxy, random.random(count), labels))
        draws.append(average_precision(detections, truths))
    means = {key: mean(np.array([draw[key] for draw in draws])) for key in draws[0]}
    return {key: value for key, value in means.items() if value == value or not key.endswith(SIZES)}


def detection_blind(
    training_truths_unit: Sequence[TrueBoxes], truths_unit: Sequence[TrueBoxes], k: int = 10
) -> dict[str, float]:
    """Compute `detection.average_precision` of the k most frequent boxes of each class.

    These boxes are predicted in every image.
    A box's score is the fraction of its class's training boxes that it matches. Per-size metrics
    are dropped, since normalized areas do not determine areas in pixels.
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
    metrics = average_precision([guess] * len(truths_unit), truths_unit)
    return {name: value for name, value in metrics.items() if not name.endswith(SIZES)}
