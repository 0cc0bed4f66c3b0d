import itertools
import math

import numpy as np
import pytest

from fiber.evaluation.box_baselines import (
    detection_blind,
    detection_chance,
    frequent_boxes,
    guess_boxes,
    phrase_blind,
    phrase_chance,
    referring_blind,
    referring_chance,
)
from fiber.metrics.boxes import pairwise_iou
from fiber.metrics.detection import SIZES, TrueBoxes, average_precision
from fiber.metrics.grounding import phrase_recall, referring_accuracy

LEFT, RIGHT = [0.0, 0.0, 0.4, 0.4], [0.6, 0.6, 1.0, 1.0]
SMALL = [0.0, 0.9, 0.1, 1.0]


def jittered(box, count, seed=0):
    return np.array(box) + np.random.default_rng(seed).uniform(-0.02, 0.02, (count, 4))


def boxes_to_the_corner(count, seed):
    return np.random.default_rng(seed).uniform([0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], (count, 4))


def test_nothing_to_measure_is_nan():
    results = [
        referring_chance([], []),
        phrase_chance([], []),
        referring_blind([], [], [], []),
        phrase_blind([], [], [], []),
        detection_chance([]),
        detection_blind([], []),
    ]
    assert all(math.isnan(value) for result in results for value in result.values())


def test_without_training_boxes_nothing_is_found():
    assert frequent_boxes([], 3).boxes_xyxy.shape == (0, 4)
    assert referring_blind([], [], ["a"], [LEFT])["accuracy_at_1"] == 0.0
    assert phrase_blind([], [], ["a"], [[LEFT]])["any_upper_bound"] == 0.0
    assert detection_blind([], [TrueBoxes([LEFT], ["a"])])["ap"] == 0.0


def test_keys_are_those_of_the_metrics():
    keys = referring_accuracy([[LEFT]], [LEFT]).keys()
    assert referring_chance([[LEFT]], [LEFT]).keys() == keys
    assert referring_blind(["a"], [LEFT], ["a"], [LEFT]).keys() == keys
    keys = phrase_recall([[LEFT]], [[LEFT]]).keys()
    assert phrase_chance([[LEFT]], [[LEFT]]).keys() == keys
    assert phrase_blind(["a"], [[LEFT]], ["a"], [[LEFT]]).keys() == keys
    truths = [TrueBoxes([LEFT], ["a"])]
    numbers = average_precision([([LEFT], [1.0], ["a"])], truths)
    keys = numbers.keys()
    assert detection_chance(truths).keys() == {name for name in keys if numbers[name] >= 0}
    # Boxes in units of the picture have no size in pixels.
    sizes = {f"{number}_{size}" for number in ("ap", "ar") for size in SIZES}
    assert detection_blind(truths, truths).keys() == keys - sizes


def test_frequent_boxes_cover_one_group_after_the_other():
    boxes = np.concatenate([jittered(LEFT, 30), jittered(RIGHT, 50), [SMALL]])
    found = frequent_boxes(boxes, 5)
    assert len(found.boxes_xyxy) == 3
    assert pairwise_iou(found.boxes_xyxy[:1], [RIGHT])[0, 0] > 0.7
    assert pairwise_iou(found.boxes_xyxy[1:2], [LEFT])[0, 0] > 0.7
    assert found.shares == pytest.approx([50 / 81, 30 / 81, 1 / 81])


def test_the_first_frequent_box_is_the_best_of_all_candidates():
    boxes = boxes_to_the_corner(200, 1)
    accuracy = (pairwise_iou(boxes, boxes) >= 0.5).mean(1)
    assert frequent_boxes(boxes, 1).shares[0] == pytest.approx(accuracy.max())


def test_frequent_boxes_repeat_and_depend_on_the_seed_where_there_are_many():
    boxes = boxes_to_the_corner(5000, 2)
    first, again = frequent_boxes(boxes, 3, seed=1), frequent_boxes(boxes, 3, seed=1)
    assert np.array_equal(first.boxes_xyxy, again.boxes_xyxy)
    assert not np.array_equal(first.boxes_xyxy, frequent_boxes(boxes, 3, seed=2).boxes_xyxy)


def test_referring_chance_is_the_mean_over_orders():
    objects = [[LEFT, RIGHT, SMALL], [LEFT, jittered(LEFT, 1)[0], RIGHT]]
    truths = [RIGHT, LEFT]
    expected = referring_chance(objects, truths, ks=(1, 2))
    orders = [
        referring_accuracy([np.array(o)[list(order)] for o in objects], truths, ks=(1, 2))
        for order in itertools.permutations(range(3))
    ]
    for key, value in expected.items():
        assert np.mean([o[key] for o in orders]) == pytest.approx(value), key
    assert expected["accuracy_at_1"] == pytest.approx((1 / 3 + 2 / 3) / 2)


def test_phrase_chance_is_the_mean_over_orders():
    objects = [LEFT, RIGHT, SMALL, [0.0, 0.0, 1.0, 1.0]]
    truths = [[LEFT, RIGHT], [SMALL]]
    expected = phrase_chance([objects] * 2, truths, ks=(1, 2, 10))
    orders = [
        phrase_recall([np.array(objects)[list(order)]] * 2, truths, ks=(1, 2, 10))
        for order in itertools.permutations(range(4))
    ]
    for key, value in expected.items():
        assert np.mean([o[key] for o in orders]) == pytest.approx(value), key
    assert phrase_chance([[]], [[LEFT]])["any_recall_at_10"] == 0.0


def test_blind_referring_uses_the_text_where_it_is_frequent():
    texts = ["left"] * 20 + ["right"] * 30 + ["rare"] * 3
    boxes = np.concatenate([jittered(LEFT, 20), jittered(RIGHT, 30), jittered(SMALL, 3)])
    test, truths = ["left", "right", "rare", "new"], [LEFT, RIGHT, SMALL, RIGHT]
    found = referring_blind(texts, boxes, test, truths, ks=(1, 2))
    # "rare" is too rare and "new" is new: both get the most frequent box, which is RIGHT.
    assert found["accuracy_at_1"] == 0.75
    assert referring_blind(texts, boxes, test, truths, per_text=False)["accuracy_at_1"] == 0.5
    # The second guess for every text is the most frequent one of all.
    guesses = guess_boxes(zip(texts, boxes[:, None], strict=True), ["left"], 2)
    assert pairwise_iou(guesses[0], [LEFT, RIGHT]).argmax(1).tolist() == [0, 1]


def test_blind_phrases_by_hand():
    phrases = ["two"] * 10 + ["one"] * 10
    boxes = [np.concatenate([jittered(LEFT, 1, i), jittered(RIGHT, 1, i)]) for i in range(10)]
    boxes += [jittered(SMALL, 1, i) for i in range(10)]
    found = phrase_blind(phrases, boxes, ["one", "two"], [[SMALL], [RIGHT]], ks=(1, 2))
    assert found["any_recall_at_2"] == 1.0
    assert found["any_upper_bound"] == 1.0


def test_blind_detection_by_hand():
    training = [TrueBoxes([LEFT, RIGHT], ["a", "b"])] * 9 + [TrueBoxes([RIGHT], ["a"])]
    truths = [TrueBoxes([LEFT], ["a"]), TrueBoxes([RIGHT], ["b"])]
    found = detection_blind(training, truths)
    # Each class is guessed in both pictures with one score: its hit is the first or second of
    # equals, at a precision of 1 and 1/2.
    assert found["ap50"] == pytest.approx((1.0 + 0.5) / 2)
    assert "ap_small" not in found


def test_chance_of_detection_is_low_and_repeats():
    truths = [TrueBoxes([LEFT, RIGHT, SMALL], ["a", "b", "c"])] * 30
    found = detection_chance(truths)
    np.testing.assert_equal(found, detection_chance(truths))
    # A third of the boxes have the right class, and a third of those found are right.
    assert 0.05 < found["ap50"] < 0.25
