"""Two versions of VQA accuracy, and the official answer normalization.

Each question has answers from about ten annotators. The official score is min(1, count / 3), where
count is the number of annotators who gave the answer, averaged over all subsets that leave one
annotator out. The published code instead looks up the score for this count in a table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from fiber.metrics.matching import mean

#: Published score by the number of annotators who gave the answer; 4 or more score 1.
PUBLISHED_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)
#: Minimum number of annotators for a unanimous answer to score 1 in both versions.
PEOPLE_FOR_ALL = 4

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_DIGITS: dict[str, str] = {word: str(i) for i, word in enumerate(_NUMBER_WORDS.split())}
_DIGITS["none"] = "0"
_ARTICLES = {"a", "an", "the"}
# The official table maps words that lack one apostrophe to these. (Its capitalized entries never
# match, because words are lowercased first.)
_WITH_APOSTROPHE = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
_CONTRACTIONS: dict[str, str] = {
    word[:i] + word[i + 1 :]: word
    for word in _WITH_APOSTROPHE.split()
    for i, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


def normalize_answer(answer: str) -> str:
    """Normalize an answer as the official evaluation does, including its quirks.

    Number words (and "none") become digits, articles are removed, and punctuation is removed next
    to a space but replaced with a space inside a word.

    Source: VQA evaluation tools (Goyal et al. 2017).
    """
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    has_number_with_comma = re.search(r"\d,\d", answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        next_to_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if next_to_space or has_number_with_comma else " ")
    # Remove periods, except before a digit.
    text = re.sub(r"\.(?!\d)", "", text)
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def official_score(answer: str, people: Sequence[str]) -> float:
    """Score an answer as the official evaluation does, in [0, 1].

    The score is min(1, count / 3), where count is the number of annotators who gave the answer,
    averaged over all subsets that leave one annotator out. A unanimous answer thus scores 1 with
    four or more annotators, 2/3 with three and 1/3 with two. With one annotator, the official code
    scores every answer 0; here the annotator's own answer scores 1. As in the official code,
    answers are normalized only if the annotators (`people`, ten in VQAv2) disagree.
    """
    given = [p.replace("\n", " ").replace("\t", " ").strip() for p in people]
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    if len(set(given)) > 1:
        answer, given = normalize_answer(answer), [normalize_answer(p) for p in given]
    count, same = len(given), given.count(answer)
    if count < 2:
        return float(same)
    left_in, left_out = min(1.0, same / 3), min(1.0, max(0, same - 1) / 3)
    return (same * left_out + (count - same) * left_in) / count


def published_score(answer: str, people: Sequence[str]) -> float:
    """Look up the score of an answer in `PUBLISHED_SCORES`; only exact matches count.

    As in the published code, this table for ten annotators is used for any number n of annotators:
    with n < 4, an answer scores at most 0.3 n.
    """
    return PUBLISHED_SCORES[min(list(people).count(answer), len(PUBLISHED_SCORES) - 1)]


def vqa_accuracy(answers: Sequence[str], people: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute `official_accuracy` and `published_accuracy` from the annotators' raw answers.

    Raises:
        ValueError: if the lengths differ.
    """
    _check_lengths(answers, people)
    pairs = list(zip(answers, people, strict=True))
    return {
        "official_accuracy": mean(np.array([official_score(a, p) for a, p in pairs])),
        "published_accuracy": mean(np.array([published_score(a, p) for a, p in pairs])),
    }


def soft_accuracy(
    answers: Sequence[str], scores: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Compute `accuracy`: the mean score of predicted answers.

    `scores` maps answers to scores for each question (`Record.answers`); unlisted answers score 0.

    Raises:
        ValueError: if the lengths differ.
    """
    _check_lengths(answers, scores)
    accuracies = [known.get(answer, 0.0) for answer, known in zip(answers, scores, strict=True)]
    return {"accuracy": mean(np.array(accuracies))}


def _check_lengths(answers: Sequence[str], questions: Sequence) -> None:
    if len(answers) != len(questions):
        raise ValueError(
            f"expected one answer per question, got {len(answers)} answers for"
            f" {len(questions)} questions"
        )
