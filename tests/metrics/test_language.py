import math

import numpy as np
import pytest

from fiber.metrics.language import masked_word_accuracy, sentence_key, statement_accuracy


def test_nothing_to_measure_is_nan():
    assert math.isnan(masked_word_accuracy([], [])["accuracy"])
    assert math.isnan(masked_word_accuracy([[3, 4]], [[-100, -100]])["accuracy"])
    assert all(math.isnan(value) for value in statement_accuracy([], [], []).values())


def test_masked_words_count_picked_tokens_only():
    predicted = np.array([[5, 6, 7], [8, 9, 4]])
    labels = np.array([[5, -100, 3], [-100, -100, 4]])
    assert masked_word_accuracy(predicted, labels)["accuracy"] == pytest.approx(2 / 3)


def test_statements_by_hand():
    sentences = ["a", "b", "a", "b", "c"]
    found = statement_accuracy([1, 0, 1, 1, 0], [1, 0, 1, 0, 1], sentences)
    # "a" is right twice, "b" once of two, "c" wrong.
    assert found == {"accuracy": pytest.approx(3 / 5), "consistency": pytest.approx(1 / 3)}


def test_sentence_key_leaves_out_the_pair():
    assert sentence_key("dev-850-0-1") == sentence_key("dev-850-3-1") != sentence_key("dev-850-0-0")
    with pytest.raises(ValueError, match=r"'dev-850'.*2"):
        sentence_key("dev-850")


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"shape \(2,\), labels \(3,\)"):
        masked_word_accuracy([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match=r"shape \(2,\); expected \(3,\)"):
        statement_accuracy([1, 0], [1, 0], ["a", "b", "c"])
