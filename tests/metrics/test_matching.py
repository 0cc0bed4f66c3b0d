import math

import numpy as np
import pytest

from fiber.metrics.matching import matching_accuracy, swapped_accuracy


def test_nothing_to_measure_is_nan():
    assert all(math.isnan(value) for value in matching_accuracy([], []).values())
    assert all(math.isnan(v) for v in swapped_accuracy(np.zeros((0, 2, 2))).values())


def test_one_kind_only():
    found = matching_accuracy([0.2, 0.7], [1, 1])
    assert found["accuracy"] == found["match_accuracy"] == 0.5
    assert math.isnan(found["mismatch_accuracy"]) and math.isnan(found["auc"])


def test_matching_by_hand():
    found = matching_accuracy([0.9, 0.4, 0.6, 0.4, 0.1], [1, 1, 0, 0, 0])
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["match_accuracy"] == 0.5
    assert found["mismatch_accuracy"] == pytest.approx(2 / 3)
    # 0.9 is above all three; 0.4 is below 0.6, equal to 0.4, above 0.1.
    assert found["auc"] == pytest.approx((3 + 1.5) / 6)


def test_auc_of_a_constant_is_a_half():
    assert matching_accuracy([0.3] * 5, [1, 0, 0, 1, 0])["auc"] == 0.5


def test_swapped_by_hand():
    both = [[0.9, 0.1], [0.2, 0.8]]
    # Every picture prefers text 0.
    text_fails = [[0.9, 0.7], [0.2, 0.6]]
    # Every text prefers picture 1; pictures choose rightly.
    image_fails = [[0.3, 0.5], [0.1, 0.8]]
    equal = [[0.5, 0.5], [0.5, 0.5]]
    found = swapped_accuracy([both, text_fails, image_fails, equal])
    assert found == {"text": 0.5, "image": 0.5, "group": 0.25}


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"shape \(2,\).*labels \(3,\)"):
        matching_accuracy([0.1, 0.2], [1, 0, 1])
    with pytest.raises(ValueError, match=r"shape \(2, 2\).*\(n, 2, 2\)"):
        swapped_accuracy(np.zeros((2, 2)))
