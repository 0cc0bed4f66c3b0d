import json
import math

import pytest

from fiber.metrics.vqa import (
    normalize_answer,
    official_score,
    published_score,
    soft_accuracy,
    vqa_accuracy,
)
from tests.golden import COARSE


def test_nothing_to_measure_is_nan():
    assert all(math.isnan(value) for value in vqa_accuracy([], []).values())
    assert math.isnan(soft_accuracy([], [])["accuracy"])
    assert normalize_answer("") == ""


@pytest.mark.parametrize(
    ("raw", "normalized"),
    [
        ("The Dog", "dog"),
        ("a", ""),
        ("two  dogs\n", "2 dogs"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),
        ("she's", "she's"),
        ("somebody'd", "somebodyd"),
        ("1,000,000", "1000000"),
        ("red, white", "red white"),
        ("black-white", "black white"),
        ("3.5 ft.", "3.5 ft"),
        ("yes!", "yes"),
        ("what?!", "what"),
    ],
)
def test_normalisation_by_hand(raw, normalized):
    assert normalize_answer(raw) == normalized


@pytest.mark.parametrize(
    ("same", "expected"),
    # Leave each of ten out in turn: with 3 that agree, 3 times 2/3 and 7 times 1.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_official_score_of_ten_people(same, expected):
    people = ["red"] * same + [f"other {i}" for i in range(10 - same)]
    assert official_score("red", people) == pytest.approx(expected)
    assert published_score("red", people) == pytest.approx(expected)


def test_official_score_leaves_each_person_out():
    people = ["red", "red", "blue", "green", "blue"]

    def left_out(answer):
        scores = []
        for i in range(len(people)):
            others = people[:i] + people[i + 1 :]
            scores.append(min(1, others.count(answer) / 3))
        return sum(scores) / len(scores)

    for answer in ("red", "green", "grey"):
        assert official_score(answer, people) == pytest.approx(left_out(answer))


@pytest.mark.parametrize(
    ("people", "official", "published"),
    [
        # Alone, that person decides officially.
        (["red"], 1.0, 0.3),
        # Whoever is left out, one other says so: 1/3.
        (["red"] * 2, 1 / 3, 0.6),
        (["red"] * 3, 2 / 3, 0.9),
        (["red"] * 4, 1.0, 1.0),
        # Left out is the one (0 others say so), or one of the other two (1 does): (0 + 2/3) / 3.
        (["red", "blue", "green"], 2 / 9, 0.3),
        # Twice 1/3, three times 2/3: (2/3 + 2) / 5.
        (["red", "red", "blue", "blue", "green"], 8 / 15, 0.6),
        # Four times 1, eight times 1.
        (["red"] * 4 + ["blue"] * 8, 1.0, 1.0),
        # Twice 1/3, ten times 2/3: (2/3 + 20/3) / 12.
        (["red"] * 2 + ["blue"] * 10, 22 / 36, 0.6),
    ],
    ids=lambda value: f"{len(value)} people" if isinstance(value, list) else "",
)
def test_other_numbers_of_people_by_hand(people, official, published):
    assert official_score("red", people) == pytest.approx(official)
    assert published_score("red", people) == pytest.approx(published)


def test_answers_are_normalised_only_where_people_disagree():
    assert official_score("The dog", ["dog"] * 10) == 0.0
    assert official_score("The dog", ["dog"] * 9 + ["cat"]) == 1.0
    assert official_score("2", ["two"] * 9 + ["3"]) == 1.0
    # The published form never normalises.
    assert published_score("2", ["two"] * 9 + ["3"]) == 0.0


def test_a_single_person_is_right():
    assert official_score("red", ["red"]) == 1.0
    assert official_score("blue", ["red"]) == 0.0
    assert official_score("blue", []) == 0.0


def test_accuracy_is_the_mean_over_questions():
    people = [["red"] * 2 + ["The sea"] * 8, ["yes"] * 10, ["no"] * 10]
    found = vqa_accuracy(["sea", "yes", "yes"], people)
    assert found["official_accuracy"] == pytest.approx((1.0 + 1.0 + 0.0) / 3)
    assert found["published_accuracy"] == pytest.approx((0.0 + 1.0 + 0.0) / 3)


def test_scores_of_all_answers_give_the_same_accuracy():
    people = [["red"] * 2 + ["The sea"] * 8, ["yes"] * 9 + ["no"]]
    official = [{normalize_answer(a): official_score(a, p) for a in p} for p in people]
    assert official[0] == pytest.approx({"red": 0.6, "sea": 1.0})
    published = [{answer: published_score(answer, p) for answer in p} for p in people]
    assert published[0] == pytest.approx({"red": 0.6, "The sea": 1.0})
    answers = ["sea", "no"]
    expected = vqa_accuracy(answers, people)
    assert soft_accuracy(answers, official)["accuracy"] == pytest.approx(
        expected["official_accuracy"]
    )
    assert soft_accuracy(answers, published)["accuracy"] == pytest.approx(
        expected["published_accuracy"]
    )


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"1 answers.*2 questions"):
        vqa_accuracy(["a"], [["a"], ["b"]])


def test_equals_the_original():
    recorded = json.loads((COARSE / "extras.json").read_text())
    for raw, normalized in recorded["vqa.normalize_word"].items():
        assert normalize_answer(raw) == normalized, raw
    for count, score in recorded["vqa.get_score"].items():
        assert published_score("a", ["a"] * int(count)) == score
