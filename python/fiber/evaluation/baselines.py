"""Chance and blind baselines for every metric except those of boxes (see `box_baselines`).

`*_chance` functions know only the form of the question and compute expected values, without
sampling. `*_blind` functions predict without the image, from counts on the training split. Both
return the keys of the metric itself, so that a table can compare model, chance and blind.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from fiber.metrics.captions import caption_scores
from fiber.metrics.language import IGNORED, masked_word_accuracy, statement_accuracy
from fiber.metrics.matching import matching_accuracy, mean
from fiber.metrics.retrieval import check_owners
from fiber.metrics.vqa import soft_accuracy

AnswerT = TypeVar("AnswerT", bound=Hashable)


def hit_chance(candidates: int, right: int, k: int) -> float:
    """Probability that k candidates, drawn without replacement, include a right one."""
    if k >= candidates:
        return float(right > 0)
    return 1.0 - math.comb(candidates - right, k) / math.comb(candidates, k)


def retrieval_chance(
    text_image_index: ArrayLike, pictures: int, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Expected `retrieval.recall_at_k` of candidates in random order.

    Args:
        text_image_index: (T,) image index of each text.
        pictures: number of images.
        ks: cutoffs of the ranking.
    """
    owners = np.asarray(text_image_index, dtype=np.int64)
    check_owners(owners, (pictures, len(owners)))
    of_picture = np.bincount(owners, minlength=pictures)
    # Images with equally many texts have the same chance.
    kinds = Counter(of_picture[of_picture > 0].tolist())
    total, results = sum(kinds.values()), {}
    for k in ks:
        found = sum(n * hit_chance(len(owners), texts, k) for texts, n in kinds.items())
        results[f"image_to_text_recall_at_{k}"] = found / total if total else math.nan
    for k in ks:
        found = hit_chance(pictures, 1, k) if len(owners) else math.nan
        results[f"text_to_image_recall_at_{k}"] = found
    return results


def matching_chance() -> dict[str, float]:
    """Expected `matching.matching_accuracy` of random guessing."""
    return dict.fromkeys(("accuracy", "match_accuracy", "mismatch_accuracy", "auc"), 0.5)


def matching_blind(training_labels: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """`matching.matching_accuracy` of the more frequent label of the training split.

    Args:
        training_labels: (m,) 1 for a matching training pair, else 0.
        labels: (n,) the same for the evaluated pairs.
    """
    match = mean(np.asarray(training_labels, dtype=np.float64)) > 0.5
    labels = np.asarray(labels)
    return matching_accuracy(np.full(labels.shape, float(match)), labels)


def swapped_chance() -> dict[str, float]:
    """Expected `matching.swapped_accuracy` of random scores: 4 of 24 orders are right both ways.

    Source: Winoground (Thrush et al. 2022).
    """
    return {"text": 0.25, "image": 0.25, "group": 1 / 6}


def statement_chance(sentences: Sequence[Hashable]) -> dict[str, float]:
    """Expected `language.statement_accuracy` of random guessing.

    A sentence that occurs n times is always right with probability 2 ** -n.
    """
    times = Counter(sentences).values()
    return {
        "accuracy": 0.5 if times else math.nan,
        "consistency": mean(np.array([0.5**n for n in times])),
    }


def statement_blind(
    training_sentences: Sequence[str],
    training_truths: ArrayLike,
    sentences: Sequence[str],
    truths: ArrayLike,
) -> dict[str, float]:
    """`language.statement_accuracy` of the more frequent truth of each sentence in training.

    Args:
        training_sentences: (m,) statements of the training split.
        training_truths: (m,) whether each is true.
        sentences: (n,) evaluated statements; equal strings are the same statement.
        truths: (n,) whether each is true.
    """
    answers = np.asarray(training_truths).astype(bool).tolist()
    guess = most_frequent(zip(training_sentences, ({a: 1.0} for a in answers), strict=True))
    return statement_accuracy([guess(s, False) for s in sentences], truths, sentences)


def vqa_chance(
    vocabulary: Sequence[str], scores: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Expected `vqa.soft_accuracy` of a random answer from the vocabulary.

    Args:
        vocabulary: answers that the model chooses from.
        scores: score by answer for each question.
    """
    known = set(vocabulary)
    totals = [sum(s for a, s in question.items() if a in known) for question in scores]
    return {"accuracy": mean(np.array(totals) / max(1, len(known)))}


def vqa_blind(
    training_questions: Sequence[str],
    training_scores: Sequence[Mapping[str, float]],
    questions: Sequence[str],
    scores: Sequence[Mapping[str, float]],
    *,
    per_question: bool = True,
) -> dict[str, float]:
    """`vqa.soft_accuracy` of the answer with the highest total score on the training split.

    Args:
        training_questions: (m,) questions of the training split.
        training_scores: score by answer for each of them.
        questions: (n,) evaluated questions.
        scores: score by answer for each of them.
        per_question: whether to count per question string, and over all questions for new strings;
            otherwise over all questions only.
    """
    seen = training_questions if per_question else [""] * len(training_questions)
    guess = most_frequent(zip(seen, training_scores, strict=True))
    return soft_accuracy([guess(question, "") for question in questions], scores)


def caption_blind(
    training_captions: Iterable[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """`captions.caption_scores` of the most frequent training caption for every image."""
    guess = most_frequent([("", Counter(training_captions))])
    return caption_scores([guess("", "")] * len(references), references)


def most_frequent(
    counts: Iterable[tuple[Hashable, Mapping[AnswerT, float]]],
) -> Callable[[Hashable, AnswerT], AnswerT]:
    """Find the answer with the largest total weight for each key, and over all keys.

    Args:
        counts: pairs of a key and its weight by answer; keys may repeat.

    Returns:
        Function of a key and a default. It returns the key's answer, or the overall one for a new
        key, or the default if nothing was counted; ties take the first by name.
    """
    by_key: dict[Hashable, dict[AnswerT, float]] = {}
    overall: dict[AnswerT, float] = {}
    for key, weights in counts:
        for totals in (by_key.setdefault(key, {}), overall):
            for answer, weight in weights.items():
                totals[answer] = totals.get(answer, 0.0) + weight

    def guess(key: Hashable, otherwise: AnswerT) -> AnswerT:
        weights = by_key.get(key) or overall
        if not weights:
            return otherwise
        return min(weights, key=lambda answer: (-weights[answer], str(answer)))

    return guess


def masked_word_chance(vocabulary_size: int) -> dict[str, float]:
    """Expected `language.masked_word_accuracy` of a random token."""
    return {"accuracy": 1.0 / vocabulary_size}


#: Neighborhoods of `masked_word_blind` as token offsets, widest first.
NEIGHBOURHOODS = ((-2, -1, 1, 2), (-2, -1, 1), (-1, 1, 2), (-1, 1), (-1,), (1,), ())
#: Largest offset.
_REACH = 2
#: Selects each neighborhood from a token's window, which begins `_REACH` tokens before it.
_TAKE: tuple[Callable[[Sequence[int]], Hashable], ...] = tuple(
    itemgetter(*(offset + _REACH for offset in offsets)) if offsets else lambda window: ()
    for offsets in NEIGHBOURHOODS
)


def masked_word_blind(
    training_texts: Iterable[Sequence[int]],
    masked_ids: ArrayLike,
    text_mask: ArrayLike,
    labels: ArrayLike,
    mask_id: int,
) -> dict[str, float]:
    """`language.masked_word_accuracy` of the most frequent token between the same neighbors.

    Tokens are counted in training texts. The widest neighborhood seen there decides; one with a
    masked neighbor never was. A picked token that is not masked is predicted as it is if it was
    seen between these neighbors, since one picked token in ten is left unchanged and one in ten is
    random.

    Args:
        training_texts: token ids of each training text, <s> and </s> included.
        masked_ids: (n, L) input ids of the model.
        text_mask: (n, L) True = real token.
        labels: (n, L) the original id of a picked token, else -100.
        mask_id: id of <mask>.
    """
    masked_ids, labels = np.asarray(masked_ids), np.asarray(labels)
    lengths = np.asarray(text_mask).astype(bool).sum(-1)
    texts = [row[:n].tolist() for row, n in zip(masked_ids, lengths, strict=True)]
    picked = np.argwhere(labels != IGNORED).tolist()
    # Count only the needed neighborhoods: there may be many training texts.
    windows = [_windows(text) for text in texts]
    counts: list[dict[Hashable, Counter]] = [
        {take(windows[row][position]): Counter() for row, position in picked} for take in _TAKE
    ]
    for text in training_texts:
        for token, window in zip(text, _windows(text), strict=True):
            for take, counted in zip(_TAKE, counts, strict=True):
                seen = counted.get(take(window))
                if seen is not None:
                    seen[token] += 1
    predicted = np.full(labels.shape, IGNORED)
    for row, position in picked:
        seen = [
            counted[take(windows[row][position])]
            for take, counted in zip(_TAKE, counts, strict=True)
        ]
        predicted[row, position] = _guess_word(seen, texts[row][position], mask_id)
    return masked_word_accuracy(predicted, labels)


def _windows(text: Sequence[int]) -> list[list[int]]:
    """Each token with `_REACH` neighbors on both sides, -1 outside the text."""
    padded = [*[-1] * _REACH, *text, *[-1] * _REACH]
    return [padded[at : at + 2 * _REACH + 1] for at in range(len(text))]


def _guess_word(counts: Sequence[Counter], shown: int, mask_id: int) -> int:
    """Predict from the first neighborhood that was seen in training."""
    for seen in counts:
        if not seen:
            continue
        if shown != mask_id and shown in seen:
            return shown
        return min(seen, key=lambda token: (-seen[token], token))
    return mask_id
