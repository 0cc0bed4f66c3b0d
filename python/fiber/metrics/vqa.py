"""VQA accuracy in its two forms, and the official normalisation of answers.

A question was answered by some ten people. `official`: an answer that three of them gave is right;
averaged over leaving out each of the ten in turn. `published`: the table that the published code
trains and validates on, by the number of people who gave the answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from fiber.metrics.matching import mean

#: Score by the number of people who gave the answer (4 or more: 1), in the published code.
PUBLISHED_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)
#: From this many people on, what all of them say scores 1 in both forms.
PEOPLE_FOR_ALL = 4

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_DIGITS: dict[str, str] = {word: str(i) for i, word in enumerate(_NUMBER_WORDS.split())}
_DIGITS["none"] = "0"
_ARTICLES = {"a", "an", "the"}
# The official table maps words that lack one apostrophe to these. (Its entries for capitals never
# match, since words are lower-cased first.)
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
    """Bring an answer to the form in which the official evaluation compares it.

    Source: VQA evaluation tools (Goyal et al. 2017), quirks kept: a number word becomes a digit
    ("none" too), articles vanish wherever they stand, and a punctuation mark vanishes beside a
    space but becomes one inside a word.
    """
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    has_number_with_comma = re.search(r"\d,\d", answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside_space or has_number_with_comma else " ")
    # Every full stop but the one before a digit.
    text = re.sub(r"\.(?!\d)", "", text)
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def official_score(answer: str, people: Sequence[str]) -> float:
    """Score one answer against what people said, as the official evaluation does.

    Leave each of the n people out in turn, count those of the others who gave the answer, three of
    whom make it right, and average over the n turns. So what all of them say scores 1 if there are
    four or more, 2/3 of three people and 1/3 of two. One person has no others, and the official
    code would score every answer 0; here the score is 1 for that person's answer, 0 for any other.

    Args:
        answer: of the model.
        people: answers of n people (ten in VQAv2). Answers are normalised only where people
            disagree, as officially.

    Returns:
        The score in [0, 1]; 0 if nobody was asked.
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
    """Score one answer by the number of people who said exactly that: 0, .3, .6, .9, 1.

    The table is that of ten people and is read by the number alone, as in the published code: what
    n people say scores at most 0.3 n where there are fewer than four.
    """
    return PUBLISHED_SCORES[min(list(people).count(answer), len(PUBLISHED_SCORES) - 1)]


def vqa_accuracy(answers: Sequence[str], people: Sequence[Sequence[str]]) -> dict[str, float]:
    """Both accuracies.

    Args:
        answers: of the model, one for each of n questions.
        people: for each question what people answered, as they wrote it.

    Returns:
        `official_accuracy` and `published_accuracy`.

    Raises:
        ValueError: if the lengths differ.
    """
    _check_lengths(answers, people)
    pairs = list(zip(answers, people, strict=True))
    return {
        "official_accuracy": mean(np.array([official_score(a, p) for a, p in pairs])),
        "published_accuracy": mean(np.array([published_score(a, p) for a, p in pairs])),
    }


def answer_scores(people: Sequence[str], form: str = "published") -> dict[str, float]:
    """Score of every answer that people gave to one question: soft targets, or for `soft_accuracy`.

    Args:
        people: their answers.
        form: "published", or "official" (whose keys are normalised where people disagree).

    Raises:
        ValueError: for another form.
    """
    if form == "published":
        scores = {answer: published_score(answer, people) for answer in Counter(people)}
    elif form == "official":
        disagree = len(set(people)) > 1
        scores = {
            normalize_answer(answer) if disagree else answer: official_score(answer, people)
            for answer in Counter(people)
        }
    else:
        raise ValueError(f"VQA score form is {form!r}; expected 'published' or 'official'")
    return scores


def soft_accuracy(
    answers: Sequence[str], scores: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Mean score of the answers, where the score of every answer is known beforehand.

    Args:
        answers: of the model, one for each of n questions.
        scores: for each question the score of the answers that have one (`Record.answers`).

    Returns:
        `accuracy`.

    Raises:
        ValueError: if the lengths differ.
    """
    _check_lengths(answers, scores)
    found = [known.get(answer, 0.0) for answer, known in zip(answers, scores, strict=True)]
    return {"accuracy": mean(np.array(found))}


def _check_lengths(answers: Sequence[str], questions: Sequence) -> None:
    if len(answers) != len(questions):
        raise ValueError(f"got {len(answers)} answers for {len(questions)} questions")
