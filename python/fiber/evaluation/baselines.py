"""Chance and blind baselines for all metrics except box metrics (see `box_baselines`).

`*_chance` functions compute the exact expected score of random guessing. `*_blind` functions
predict from training-split statistics, without seeing the image. Both return dicts with the same
keys as the metric.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from fiber.metrics.captions import caption_scores
from fiber.metrics.language import IGNORED, masked_word_accuracy, statement_accuracy
from fiber.metrics.matching import matching_accuracy, mean
from fiber.metrics.vqa import soft_accuracy

AnswerT = TypeVar("AnswerT", bound=Hashable)


def hit_chance(candidates: int, right: int, k: int) -> float:
    """Return the probability that k candidates drawn without replacement include a correct one."""
    if k >= candidates:
        return float(right > 0)
    return 1.0 - math.comb(candidates - right, k) / math.comb(candidates, k)


def retrieval_chance(
    text_image_index: ArrayLike, num_images: int, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Compute the expected `retrieval.recall_of_ranks` for randomly ordered candidates.

    `text_image_index` is a (T,) array with the image index of each text.

    Raises:
        ValueError: if an index is out of range.
    """
    owners = np.asarray(text_image_index, dtype=np.int64)
    if owners.size and not 0 <= owners.min() <= owners.max() < num_images:
        raise ValueError(
            f"text_image_index must be in [0, {num_images}), got {owners.min()} to {owners.max()}"
        )
    texts_per_image = np.bincount(owners, minlength=num_images)
    # Images with the same number of texts have the same hit probability.
    kinds = Counter(texts_per_image[texts_per_image > 0].tolist())
    total, results = sum(kinds.values()), {}
    for k in ks:
        found = sum(n * hit_chance(len(owners), texts, k) for texts, n in kinds.items())
        results[f"image_to_text_recall_at_{k}"] = found / total if total else math.nan
    for k in ks:
        found = hit_chance(num_images, 1, k) if len(owners) else math.nan
        results[f"text_to_image_recall_at_{k}"] = found
    return results


def matching_chance() -> dict[str, float]:
    """Return the expected `matching.matching_accuracy` of random guessing."""
    return dict.fromkeys(("accuracy", "match_accuracy", "mismatch_accuracy", "auc"), 0.5)


def matching_blind(training_labels: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Compute `matching.matching_accuracy` of always predicting the most frequent training label.

    Labels are 1 for matching pairs and 0 for others. There are (m,) training labels and (n,)
    evaluation labels.
    """
    match = mean(np.asarray(training_labels, dtype=np.float64)) > 0.5
    labels = np.asarray(labels)
    return matching_accuracy(np.full(labels.shape, float(match)), labels)


def statement_chance(sentences: Sequence[Hashable]) -> dict[str, float]:
    """Compute the expected `language.statement_accuracy` of random guessing.

    All n statements with the same sentence are classified correctly with probability 2 ** -n.
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
    """Compute `language.statement_accuracy` of predicting each sentence's most frequent label.

    The most frequent labels come from the training split. Sentences are compared as strings.
    """
    answers = np.asarray(training_truths).astype(bool).tolist()
    guess = most_frequent(zip(training_sentences, ({a: 1.0} for a in answers), strict=True))
    return statement_accuracy([guess(s, False) for s in sentences], truths, sentences)


def vqa_chance(
    vocabulary: Sequence[str], scores: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Compute the expected `vqa.soft_accuracy` of random answers from the model's vocabulary."""
    known = set(vocabulary)
    totals = [sum(s for a, s in question.items() if a in known) for question in scores]
    return {"accuracy": mean(np.array(totals) / max(1, len(known)))}


def vqa_object_chance(
    candidates: Collection[str],
    objects: Sequence[Sequence[Collection[str]]],
    scores: Sequence[Mapping[str, float]],
) -> dict[str, float]:
    """Compute the expected `vqa.soft_accuracy` of naming a random object of the image.

    A model that sees the image, but not which object a question is about, gets as much.

    Args:
        candidates: answers to choose from.
        objects: words of each object of the image, for each of the n questions. An object without
            a candidate is not chosen; if no object has one, the question is not answered.
        scores: scores of each question by answer.
    """
    known, shares = set(candidates), []
    for each, score in zip(objects, scores, strict=True):
        named = [words for own in each if (words := known & set(own))]
        rates = [sum(score.get(word, 0.0) for word in words) / len(words) for words in named]
        shares.append(sum(rates) / max(1, len(rates)))
    return {"accuracy": mean(np.array(shares))}


def vqa_blind(
    training_questions: Sequence[str],
    training_scores: Sequence[Mapping[str, float]],
    questions: Sequence[str],
    scores: Sequence[Mapping[str, float]],
    *,
    per_question: bool = True,
) -> dict[str, float]:
    """Compute `vqa.soft_accuracy` of predicting the answer with the highest total training score.

    Scores are keyed by answer. With `per_question`, scores are summed over the training questions
    with the same string, or over all questions if there are none. Otherwise, scores are always
    summed over all questions.
    """
    seen = training_questions if per_question else [""] * len(training_questions)
    guess = most_frequent(zip(seen, training_scores, strict=True))
    return soft_accuracy([guess(question, "") for question in questions], scores)


def caption_blind(
    training_captions: Iterable[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Compute `captions.caption_scores` of always predicting the most frequent training caption."""
    guess = most_frequent([("", Counter(training_captions))])
    return caption_scores([guess("", "")] * len(references), references)


def most_frequent(
    counts: Iterable[tuple[Hashable, Mapping[AnswerT, float]]],
) -> Callable[[Hashable, AnswerT], AnswerT]:
    """Find the answer with the largest total weight, per key and overall.

    Returns a function with two arguments, a key and a default answer. The function returns the
    key's answer, or the overall answer if the key was not seen, or the default if there are no
    counts. Ties are broken by name.
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
    """Return the expected `language.masked_word_accuracy` of random tokens."""
    return {"accuracy": 1.0 / vocabulary_size}


#: Functions that select a token's neighbors from the window of five tokens around it, widest first.
#: The neighbors are at a subset of the offsets -2, -1, 1 and 2.
_NEIGHBORHOODS: tuple[Callable[[Sequence[int]], Hashable], ...] = (
    itemgetter(0, 1, 3, 4),
    itemgetter(0, 1, 3),
    itemgetter(1, 3, 4),
    itemgetter(1, 3),
    itemgetter(1),
    itemgetter(3),
    lambda window: (),
)


def masked_word_blind(
    training_texts: Iterable[Sequence[int]],
    masked_ids: ArrayLike,
    text_mask: ArrayLike,
    labels: ArrayLike,
    mask_id: int,
) -> dict[str, float]:
    """Compute `language.masked_word_accuracy` of predicting the most frequent token in context.

    The context is the widest neighborhood that occurs in the training texts, which contain no mask
    tokens. If the input token is not <mask> and occurs in this context in training, the input token
    itself is predicted, since MLM leaves one in ten picked tokens unchanged.

    All texts include <s> and </s>. `masked_ids` are the model's (n, L) input ids. `labels` are
    (n, L) ids, with the true ids of picked tokens and -100 elsewhere.
    """
    masked_ids, labels = np.asarray(masked_ids), np.asarray(labels)
    lengths = np.asarray(text_mask).astype(bool).sum(-1)
    texts = [row[:n].tolist() for row, n in zip(masked_ids, lengths, strict=True)]
    neighbors = [list(_neighbors(text)) for text in texts]
    picked = np.argwhere(labels != IGNORED).tolist()
    # Count only the needed neighborhoods, since there may be many training texts.
    counts: list[dict[Hashable, Counter[int]]] = [{} for _ in _NEIGHBORHOODS]
    for row, position in picked:
        for seen, key in zip(counts, neighbors[row][position], strict=True):
            seen[key] = Counter()
    for text in training_texts:
        for token, keys in zip(text, _neighbors(text), strict=True):
            for seen, key in zip(counts, keys, strict=True):
                if key in seen:
                    seen[key][token] += 1
    predicted = np.full(labels.shape, IGNORED)
    for row, position in picked:
        shown = texts[row][position]
        found = (seen[key] for seen, key in zip(counts, neighbors[row][position], strict=True))
        tokens = next(filter(None, found), Counter({mask_id: 1}))
        if shown == mask_id or shown not in tokens:
            shown = min(tokens, key=lambda token: (-tokens[token], token))
        predicted[row, position] = shown
    return masked_word_accuracy(predicted, labels)


def _neighbors(text: Sequence[int]) -> Iterator[list[Hashable]]:
    """Yield each token's neighbors for all `_NEIGHBORHOODS`, with -1 outside the text."""
    padded = [-1, -1, *text, -1, -1]
    for at in range(len(text)):
        window = padded[at : at + 5]
        yield [select(window) for select in _NEIGHBORHOODS]
