import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file

from fiber.metrics.retrieval import recall_of_ranks, reranked, wrong_before
from tests.golden import COARSE
from tests.metrics.recall import recall_at_k


def plain_recall(scores, owners, k):
    """Sort the candidates, wrong ones first among equals, and look at the first k."""
    found_texts, found_images = [], []
    for picture in sorted(set(owners)):
        order = sorted(
            range(len(owners)), key=lambda t: (-scores[picture][t], owners[t] == picture)
        )
        found_texts.append(any(owners[t] == picture for t in order[:k]))
    for text, owner in enumerate(owners):
        order = sorted(range(len(scores)), key=lambda p: (-scores[p][text], p == owner))
        found_images.append(owner in order[:k])
    return np.mean(found_texts), np.mean(found_images)


def test_nothing_to_measure_is_nan():
    found = recall_at_k(np.zeros((0, 0)), [], ks=(1,))
    assert all(math.isnan(value) for value in found.values())
    assert list(found) == ["image_to_text_recall_at_1", "text_to_image_recall_at_1"]


def test_by_hand():
    # Picture 0 has texts 0 and 1, picture 1 has text 2, picture 2 has none.
    scores = [[0.9, 0.1, 0.5], [0.2, 0.3, 0.4], [0.1, 0.2, 0.6]]
    found = recall_at_k(scores, [0, 0, 1], ks=(1, 2, 10))
    assert found == {
        "image_to_text_recall_at_1": 1.0,
        "image_to_text_recall_at_2": 1.0,
        "image_to_text_recall_at_10": 1.0,
        # Text 0 finds its picture; text 1 ranks it third, text 2 third.
        "text_to_image_recall_at_1": pytest.approx(1 / 3),
        "text_to_image_recall_at_2": pytest.approx(1 / 3),
        "text_to_image_recall_at_10": 1.0,
    }


def test_equal_scores_find_nothing():
    found = recall_at_k(np.zeros((4, 4)), range(4), ks=(1, 3, 4))
    assert found["image_to_text_recall_at_3"] == found["text_to_image_recall_at_3"] == 0.0
    assert found["image_to_text_recall_at_4"] == 1.0


def test_texts_of_one_picture_do_not_compete():
    found = recall_at_k([[0.9, 0.9, 0.1], [0.1, 0.1, 0.9]], [0, 0, 1], ks=(1,))
    assert found["image_to_text_recall_at_1"] == 1.0


@pytest.mark.parametrize("levels", [3, 1000], ids=["many ties", "hardly a tie"])
def test_equals_sorting(levels):
    random = np.random.default_rng(0)
    owners = random.integers(0, 9, 21).tolist()
    scores = random.integers(0, levels, (9, 21)).astype(np.float32)
    for k in (1, 2, 5):
        texts, images = plain_recall(scores.tolist(), owners, k)
        found = recall_at_k(scores, owners, ks=(k,))
        assert found[f"image_to_text_recall_at_{k}"] == pytest.approx(texts)
        assert found[f"text_to_image_recall_at_{k}"] == pytest.approx(images)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="NaN"):
        recall_at_k(np.full((2, 2), np.nan), [0, 1])


def test_equals_the_original():
    scores = load_file(COARSE / "extras.safetensors")["recall.scores"]
    recorded = json.loads((COARSE / "extras.json").read_text())["recall"]
    found = recall_at_k(scores, np.arange(18) // 3, ks=(1, 2, 5))
    for k, value in recorded.items():
        # Recorded as float32 means.
        assert found[f"image_to_text_recall_at_{k}"] == pytest.approx(value["tr"], rel=1e-6)
        assert found[f"text_to_image_recall_at_{k}"] == pytest.approx(value["ir"], rel=1e-6)


def test_wrong_candidates_before_the_right_one():
    scores = [[0.9, 0.5, 0.7], [0.4, 0.4, 0.1], [0.3, 0.2, 0.1], [1.0, 2.0, 3.0]]
    right = [[0, 1, 0], [1, 0, 1], [1, 1, 0], [0, 0, 0]]
    # Two are better; one is equal to the better right one; none; without a right one all are.
    assert wrong_before(scores, right).tolist() == [2, 1, 0, 3]
    assert wrong_before(np.zeros((0, 3)), np.zeros((0, 3))).tolist() == []
    assert wrong_before(np.zeros((2, 0)), np.zeros((2, 0))).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"shape \(2,\).*right \(2,\).*\(n, m\)"):
        wrong_before([1, 2], [1, 0])


def test_reranking_by_hand():
    # The right candidate moves from the third place to the first; from the second to the third; it
    # is not among those that are looked at again.
    scores = [[0.1, 0.2, 0.3], [0.3, 0.1, 0.2], [0.3, 0.2, 0.1]]
    right = [[0, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert reranked([2, 1, 7], scores, right).tolist() == [0, 2, 7]


def test_recall_of_ranks_by_hand():
    assert recall_of_ranks([0, 4, 10], [1, 0], ks=(1, 5)) == {
        "image_to_text_recall_at_1": pytest.approx(1 / 3),
        "image_to_text_recall_at_5": pytest.approx(2 / 3),
        "text_to_image_recall_at_1": 0.5,
        "text_to_image_recall_at_5": 1.0,
    }
