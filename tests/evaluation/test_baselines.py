import itertools
import math

import numpy as np
import pytest

from fiber.evaluation.baselines import (
    caption_blind,
    hit_chance,
    masked_word_blind,
    masked_word_chance,
    matching_blind,
    matching_chance,
    most_frequent,
    retrieval_chance,
    statement_blind,
    statement_chance,
    vqa_blind,
    vqa_chance,
    vqa_object_chance,
)
from fiber.metrics.captions import caption_scores
from fiber.metrics.language import masked_word_accuracy, statement_accuracy
from fiber.metrics.matching import matching_accuracy
from fiber.metrics.vqa import soft_accuracy
from tests.metrics.recall import recall_at_k

MASK = 99


def test_nothing_to_measure_is_nan():
    results = [
        retrieval_chance([], 0),
        statement_chance([]),
        statement_blind([], [], [], []),
        vqa_chance(["red"], []),
        vqa_blind([], [], [], []),
        matching_blind([], []),
        caption_blind(["a dog"], []),
        masked_word_blind([], np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3)), MASK),
    ]
    assert all(math.isnan(value) for result in results for value in result.values())


def test_keys_are_those_of_the_metrics():
    assert retrieval_chance([0, 1], 2).keys() == recall_at_k(np.eye(2), [0, 1]).keys()
    matching = matching_accuracy([0.1, 0.9], [0, 1]).keys()
    assert matching_chance().keys() == matching_blind([1], [0, 1]).keys() == matching
    statement = statement_accuracy([1], [1], ["a"]).keys()
    assert statement_chance(["a"]).keys() == statement
    assert statement_blind(["a"], [1], ["a"], [1]).keys() == statement
    answer = soft_accuracy(["a"], [{"a": 1.0}]).keys()
    assert vqa_chance(["a"], [{}]).keys() == vqa_blind(["q"], [{}], ["q"], [{}]).keys() == answer
    assert caption_blind([], [["a"]]).keys() == caption_scores(["a"], [["a"]]).keys()
    assert masked_word_chance(5).keys() == masked_word_accuracy([1], [1]).keys()


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_hit_chance_counts_draws(k):
    for candidates, right in ((5, 0), (5, 1), (5, 2), (1, 1), (0, 0)):
        draws = list(itertools.combinations(range(candidates), min(k, candidates)))
        expected = np.mean([any(d < right for d in draw) for draw in draws])
        assert hit_chance(candidates, right, k) == pytest.approx(expected)


def test_retrieval_chance_is_the_mean_of_random_scores():
    owners = [0, 0, 0, 1, 2, 2]
    expected = retrieval_chance(owners, 4, ks=(1, 2))
    random = np.random.default_rng(0)
    drawn = [recall_at_k(random.random((4, 6)), owners, ks=(1, 2)) for _ in range(3000)]
    for key, value in expected.items():
        # The mean of 3,000 numbers in [0, 1] has a standard deviation of 0.009 at most.
        assert np.mean([d[key] for d in drawn]) == pytest.approx(value, abs=0.03)
    assert expected["text_to_image_recall_at_1"] == 0.25
    assert expected["image_to_text_recall_at_1"] == pytest.approx((3 + 1 + 2) / 6 / 3)


def test_image_indices_out_of_range_are_named():
    for owners in ([0, 1, 2], [-1, 0, 1]):
        with pytest.raises(ValueError, match=rf"\[0, 2\), got {min(owners)} to {max(owners)}"):
            retrieval_chance(owners, 2)


def test_statement_chance_counts_coins():
    sentences, truths = ["a", "a", "b"], [1, 0, 1]
    coins = [
        statement_accuracy(coin, truths, sentences) for coin in itertools.product((0, 1), repeat=3)
    ]
    for key, value in statement_chance(sentences).items():
        assert np.mean([c[key] for c in coins]) == pytest.approx(value)


def test_majority_of_matching():
    found = matching_blind([0, 0, 1], [0, 0, 0, 1])
    assert found == {
        "accuracy": 0.75,
        "match_accuracy": 0.0,
        "mismatch_accuracy": 1.0,
        "auc": 0.5,
    }
    assert matching_blind([1, 1, 0], [0, 0, 0, 1])["accuracy"] == 0.25


def test_blind_statements_by_hand():
    found = statement_blind(["a", "a", "a", "b"], [1, 1, 0, 0], ["a", "b", "new"], [1, 1, 0])
    # "a" is mostly true, "b" false, and a tie over all: False is first by name.
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_blind_answers_by_hand():
    questions = ["colour?", "colour?", "colour?", "many?", "many?", "many?", "many?"]
    scores = [{"red": 1.0}, {"red": 0.3, "blue": 1.0}, {"blue": 0.6}] + [{"2": 1.0}] * 4
    test = ["colour?", "many?", "where?"]
    truth = [{"blue": 1.0, "red": 0.3}, {"2": 0.6}, {"2": 0.9}]
    assert vqa_blind(questions, scores, test, truth)["accuracy"] == pytest.approx(2.5 / 3)
    overall = vqa_blind(questions, scores, test, truth, per_question=False)
    assert overall["accuracy"] == pytest.approx((0 + 0.6 + 0.9) / 3)


def test_blind_captions_by_hand():
    """ "a dog" is written twice; three of its two times two words are the pictures' own."""
    found = caption_blind(["a cat sits", "a dog", "a dog"], [["a dog"], ["a pig", "two cows"]])
    # Common parts of 2 of 2 words and 1 of 2, each with a reference of 2 words.
    assert found["rouge_l"] == pytest.approx((1 + 0.5) / 2)
    assert found == caption_scores(["a dog"] * 2, [["a dog"], ["a pig", "two cows"]])
    # Equally frequent: the first by name.
    assert caption_blind(["b", "a"], [["a"]])["rouge_l"] == 1.0


def test_answer_chance_by_hand():
    found = vqa_chance(["red", "blue", "2"], [{"red": 1.0, "blue": 0.3}, {"unknown": 1.0}])
    assert found["accuracy"] == pytest.approx((1.3 / 3 + 0) / 2)


def test_most_frequent_breaks_ties_by_name():
    guess = most_frequent([("q", {"b": 1.0}), ("q", {"a": 1.0})])
    assert guess("q", "nothing") == "a"
    assert most_frequent([])("q", "nothing") == "nothing"


def blind_word(training, shown, labels):
    mask = np.ones((1, len(shown)), dtype=bool)
    return masked_word_blind(training, [shown], mask, [labels], MASK)["accuracy"]


def test_blind_words_use_the_widest_neighbourhood_that_was_seen():
    training = [[0, 5, 6, 7, 2], [0, 5, 8, 7, 2], [0, 5, 8, 7, 2], [0, 4, 6, 7, 2]]
    # Between 5 and 7 stood 8 twice and 6 once; between 4 and 7 only 6.
    assert blind_word(training, [0, 5, MASK, 7, 2], [-100, -100, 8, -100, -100]) == 1.0
    assert blind_word(training, [0, 4, MASK, 7, 2], [-100, -100, 6, -100, -100]) == 1.0
    # A masked right neighbour: what followed 5 most often.
    assert blind_word(training, [0, 5, MASK, MASK, 2], [-100, -100, 8, -100, -100]) == 1.0
    # Neighbours never seen: the most frequent token of all, of equals the lowest id.
    assert blind_word(training, [40, MASK, 41], [-100, 0, -100]) == 1.0


def test_blind_words_keep_a_token_that_fits():
    training = [[0, 5, 6, 2], [0, 5, 6, 2], [0, 5, 7, 2]]
    # 7 is shown where it was seen, 9 where it never was.
    assert blind_word(training, [0, 5, 7, 2], [-100, -100, 7, -100]) == 1.0
    assert blind_word(training, [0, 5, 9, 2], [-100, -100, 6, -100]) == 1.0


def test_blind_words_never_look_at_the_padding():
    training = [[0, 5, 6, 2], [0, 5, 7]]
    mask = np.array([[True, True, True, False]])
    found = masked_word_blind(
        training, [[0, 5, MASK, 2]], mask, [[-100, -100, 7, -100]], mask_id=MASK
    )
    assert found["accuracy"] == 1.0


def test_an_answer_is_a_word_of_a_random_object():
    objects = [
        [{"a", "red", "star"}, {"blue", "ring"}],
        # Objects that no candidate names are not chosen.
        [{"red"}, {"ring"}],
        [{"red", "blue"}],
        [{"ring"}],
        [],
    ]
    scores = [{"red": 1.0}, {"red": 1.0}, {"blue": 0.6}, {"red": 1.0}, {"red": 1.0}]
    found = vqa_object_chance(["red", "blue"], objects, scores)
    assert found["accuracy"] == pytest.approx((0.5 + 1 + 0.3 + 0 + 0) / 5)
    with pytest.raises(ValueError, match="shorter"):
        vqa_object_chance(["red"], objects, scores[:1])
