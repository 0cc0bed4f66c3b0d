import numpy as np
import pytest

from fiber.metrics.groups import by_group
from fiber.metrics.matching import matching_accuracy
from fiber.metrics.vqa import soft_accuracy


def test_no_samples_no_groups():
    assert by_group(soft_accuracy, [], [], []) == {}


def test_groups_by_hand():
    found = by_group(
        soft_accuracy,
        ["count", "colour", "count"],
        ["2", "red", "3"],
        [{"2": 1.0}, {"red": 0.6}, {"4": 1.0}],
    )
    assert found == {
        "colour": {"accuracy": 0.6, "count": 1.0},
        "count": {"accuracy": 0.5, "count": 2.0},
    }


def test_arrays_and_options():
    scores, labels = np.array([0.2, 0.8, 0.4]), np.array([1, 1, 0])
    found = by_group(matching_accuracy, [0, 1, 0], scores, labels, threshold=0.1)
    assert found[0]["accuracy"] == 0.5
    assert found[1]["accuracy"] == 1.0


def test_wrong_lengths_are_named():
    with pytest.raises(ValueError, match=r"column 1.*1.*2"):
        by_group(soft_accuracy, ["a", "b"], ["x", "y"], [{}])
