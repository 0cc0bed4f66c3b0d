import math

import numpy as np
import pytest

from fiber.metrics.groups import with_groups
from fiber.metrics.matching import matching_accuracy
from fiber.metrics.vqa import soft_accuracy


def test_no_samples_no_groups():
    found = with_groups(soft_accuracy, [], [], [])
    assert found.keys() == {"accuracy"} and math.isnan(found["accuracy"])


def test_groups_by_hand():
    answers, scores = ["2", "red", "3"], [{"2": 1.0}, {"red": 0.6}, {"4": 1.0}]
    found = with_groups(soft_accuracy, ["count", "colour", "count"], answers, scores)
    assert found == {
        "accuracy": pytest.approx(1.6 / 3),
        "colour/accuracy": 0.6,
        "count/accuracy": 0.5,
    }
    assert list(found) == ["accuracy", "colour/accuracy", "count/accuracy"]
    # A sample without a group, and no groups at all.
    found = with_groups(soft_accuracy, ["count", "", "count"], answers, scores)
    assert (found["count/accuracy"], found["other/accuracy"]) == (0.5, 0.6)
    assert with_groups(soft_accuracy, ["", "", ""], answers, scores).keys() == {"accuracy"}


def test_arrays_and_options():
    scores, labels = np.array([0.2, 0.8, 0.4]), np.array([1, 1, 0])
    found = with_groups(matching_accuracy, ["a", "b", "a"], scores, labels, threshold=0.1)
    assert found["a/accuracy"] == 0.5
    assert found["b/accuracy"] == 1.0


def test_wrong_lengths_are_named():
    with pytest.raises(ValueError, match=r"column 1.*1.*2"):
        with_groups(soft_accuracy, ["a", "b"], ["x", "y"], [{}])
