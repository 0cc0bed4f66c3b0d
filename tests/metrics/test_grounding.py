import math

import numpy as np
import pytest

from fiber.metrics.grounding import phrase_recall, referring_accuracy

BOX = [0.0, 0.0, 4.0, 4.0]
# IoU with BOX: 0.5 exactly; 0.6 with a GIoU below 0.5; 0.
HALF = [0.0, 0.0, 4.0, 2.0]
SHIFTED = [1.0, 0.0, 5.0, 4.0]
SHIFTED_BOTH = [0.6, 0.6, 4.6, 4.6]
FAR = [9.0, 9.0, 10.0, 10.0]


def test_nothing_to_measure_is_nan():
    assert all(math.isnan(value) for value in referring_accuracy([], []).values())
    assert all(math.isnan(value) for value in phrase_recall([], []).values())


def test_no_prediction_is_a_miss():
    assert referring_accuracy([[]], [BOX])["accuracy_at_1"] == 0.0
    found = phrase_recall([np.zeros((0, 4))], [[BOX]])
    assert found["any_recall_at_10"] == found["any_upper_bound"] == 0.0


def test_referring_by_hand():
    predicted = [[HALF], [SHIFTED], [FAR, BOX], [FAR]]
    found = referring_accuracy(predicted, [BOX] * 4, ks=(1, 2))
    assert found["accuracy_at_1"] == 0.5
    assert found["accuracy_at_2"] == 0.75


def test_giou_is_the_harder_of_the_two():
    # 3.4 * 3.4 shared of 32 - 11.56: IoU 0.5656; the hull of 21.16 leaves 0.72: GIoU 0.5316.
    found = referring_accuracy([[SHIFTED_BOTH]], [BOX])
    assert found == {"accuracy_at_1": 1.0, "giou_accuracy_at_1": 1.0}
    # 3.3 * 3.3 shared of 32 - 10.89: IoU 0.5159; the hull of 22.09 leaves 0.98: GIoU 0.4715.
    found = referring_accuracy([[[0.7, 0.7, 4.7, 4.7]]], [BOX])
    assert found == {"accuracy_at_1": 1.0, "giou_accuracy_at_1": 0.0}


def test_phrases_by_hand():
    # Two boxes side by side: together they are 8 x 4.
    pair = [BOX, [4.0, 0.0, 8.0, 4.0]]
    around = [0.0, 0.0, 8.0, 4.0]
    predicted = [[FAR, BOX], [around], [FAR] * 5 + [around]]
    found = phrase_recall(predicted, [pair] * 3, ks=(1, 5))
    assert found == {
        # `around` has IoU 0.5 with each of the pair.
        "any_recall_at_1": pytest.approx(1 / 3),
        "any_recall_at_5": pytest.approx(2 / 3),
        "any_upper_bound": 1.0,
        "merged_recall_at_1": pytest.approx(1 / 3),
        # A half of the merged box has IoU 0.5 with it too.
        "merged_recall_at_5": pytest.approx(2 / 3),
        "merged_upper_bound": 1.0,
    }


def test_merging_can_only_be_met_by_the_box_around_all():
    corners = [[0.0, 0.0, 1.0, 1.0], [9.0, 9.0, 10.0, 10.0]]
    found = phrase_recall(
        [[[0.0, 0.0, 1.0, 1.0]], [[0.0, 0.0, 10.0, 10.0]]], [corners] * 2, ks=(1,)
    )
    assert found["any_recall_at_1"] == found["merged_recall_at_1"] == 0.5


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="phrase 1 has no ground-truth box"):
        phrase_recall([[BOX], [BOX]], [[BOX], []])
    with pytest.raises(ValueError, match=r"2 phrases.*1"):
        referring_accuracy([[BOX]], [BOX, BOX])
