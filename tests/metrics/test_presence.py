"""Presence of labels from their best scores: fit, thresholds and what a file may hold."""

import dataclasses

import numpy as np
import pytest

from fiber.metrics.presence import (
    Calibration,
    Presence,
    calibrate,
    calibration_error,
    false_answers,
    from_json,
    ranking_quality,
    reliability,
    to_json,
)


def labels(seed=0, count=4000, slope=2.0, intercept=1.0):
    """Scores of labels whose presence has a known probability; all boxes are right."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.02, 0.98, count)
    probability = 1 / (1 + np.exp(-(slope * np.log(scores / (1 - scores)) + intercept)))
    present = rng.random(count) < probability
    return scores, present, present.copy()


def made(**changes):
    values = {"slope": 1.0, "intercept": 0.0, "threshold": 0.5, "precision": 0.9, "recall": 0.8}
    return Calibration(**values | {"present": 100, "absent": 100} | changes)


def test_no_label_and_few_labels():
    empty = np.zeros(0, bool)
    with pytest.raises(ValueError, match="0 labels are present"):
        calibrate(np.zeros(0), empty, empty)
    scores, present, right = labels(count=200)
    present[:] = True
    with pytest.raises(ValueError, match="0 labels are absent"):
        calibrate(scores, present, right)


def test_the_fit_finds_the_map_that_made_the_labels():
    scores, present, right = labels(count=40_000)
    found = calibrate(scores, present, right)
    # Half of the weight on each side adds the log odds of the labels to the intercept.
    odds = np.log(present.sum() / (~present).sum())
    assert found.slope == pytest.approx(2.0, abs=0.1)
    assert found.intercept == pytest.approx(1.0 - odds, abs=0.1)
    assert found.per_label == 0.0
    assert calibration_error(found.presence(scores), present) < 0.02
    assert (found.present, found.absent) == (present.sum(), (~present).sum())


def test_the_length_of_a_prompt_counts_if_lengths_differ():
    scores, present, right = labels(count=20_000)
    lengths = np.random.default_rng(1).integers(1, 9, len(scores))
    # In longer prompts, the same labels score less.
    logits = np.log(scores / (1 - scores)) - 0.7 * np.log(lengths)
    found = calibrate(1 / (1 + np.exp(-logits)), present, right, lengths)
    assert found.per_label == pytest.approx(0.7 * found.slope, rel=0.05)
    one, eight = found.presence(np.full(2, 0.4), np.array([1, 8]))
    assert eight > one


def test_scores_that_separate_all_labels_give_a_finite_map():
    present = np.arange(200) % 2 == 0
    scores = np.where(present, 0.9, 0.1)
    found = calibrate(scores, present, present)
    low, high = found.presence(np.array([0.1, 0.9]))
    assert low < 0.05 and high > 0.95
    assert found.threshold == 0.9 and found.precision == pytest.approx(1.0) == found.recall


def test_scores_that_tell_nothing_are_refused():
    scores, present, right = labels()
    with pytest.raises(ValueError, match="as high as those of present"):
        calibrate(1 - scores, present, right)


def test_the_threshold_has_the_best_f1_of_those_with_a_precision():
    present = np.repeat([True, False], 50)
    scores = np.concatenate([np.linspace(0.4, 0.9, 50), np.linspace(0.1, 0.6, 50)])

    def shares(at):
        right = (scores[present] >= at).sum()
        return right / (scores >= at).sum(), right / 50

    def f1(at):
        precision, recall = shares(at)
        return 2 * precision * recall / (precision + recall)

    for precision in (0.5, 0.8, 0.83):
        found = calibrate(scores, present, present, precision=precision)
        assert shares(found.threshold) == pytest.approx((found.precision, found.recall))
        fitting = [at for at in scores if shares(at)[0] >= precision and shares(at)[1] >= 0.9]
        assert f1(found.threshold) == pytest.approx(max(map(f1, fitting or scores)))
    # Precise thresholds that leave little of the recall are not taken.
    assert calibrate(scores, present, present, precision=0.95).recall > 0.8
    # Wrong boxes of present labels count against precision.
    wrong = np.zeros(100, bool)
    wrong[:50:3] = True
    assert calibrate(scores, present, wrong, precision=0.9).precision < 0.9


def test_false_answers_at_a_share_of_the_recall():
    present = np.repeat([True, False], 100)
    scores = np.concatenate([np.linspace(0.01, 1, 100), np.linspace(0.01, 1, 100)])
    share, score = false_answers(scores, present, present)
    assert (share, score) == (0.95, pytest.approx(0.06))
    assert false_answers(scores, present, present, share=1.0)[0] == 1.0
    nothing_right = np.zeros(200, bool)
    assert false_answers(scores, present, nothing_right) == (1.0, 0.0)


def test_ranking_counts_equal_scores_as_half():
    present = np.array([True, True, False, False])
    assert ranking_quality(np.array([0.9, 0.8, 0.1, 0.2]), present) == 1.0
    assert ranking_quality(np.array([0.1, 0.2, 0.9, 0.8]), present) == 0.0
    assert ranking_quality(np.full(4, 0.5), present) == 0.5
    assert ranking_quality(np.array([0.9, 0.1, 0.5, 0.1]), present) == 0.625


def test_reliability_weighs_both_halves_alike():
    present = np.array([True] + [False] * 9)
    found = reliability(np.full(10, 0.55), present)
    assert found == [(pytest.approx(0.55), pytest.approx(0.5), pytest.approx(1.0))]
    assert calibration_error(np.full(10, 0.55), present) == pytest.approx(0.05)


def test_probabilities_rise_with_scores_to_the_ends():
    found = made(slope=3.0).presence(np.array([0.0, 0.2, 0.5, 0.8, 1.0]))
    assert found.dtype == np.float32 and (np.diff(found) > 0).all()
    assert found[2] == 0.5 and 0 <= found[0] < 1e-6 and found[-1] == 1.0


def test_a_file_keeps_every_value():
    presence = Presence(phrase=made(per_label=0.25), classes=made(intercept=-2.0), data="x, val")
    assert from_json(to_json(presence)) == presence
    assert from_json(to_json(presence)).of("caption") is None
    assert from_json(to_json(presence)).of("classes") == presence.classes


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("slope", 0.0, "slope: expected 1e-06 to 10000.0, got 0.0"),
        ("slope", float("nan"), "slope: expected"),
        ("intercept", float("inf"), "intercept: expected"),
        ("threshold", 1.5, "threshold: expected 0.0 to 1.0, got 1.5"),
        ("recall", -0.1, "recall: expected"),
        ("present", -1, "present: expected"),
        ("absent", 10**30, "absent: expected"),
        ("slope", "1", "slope: expected float, got '1'"),
        ("sloppe", 1.0, "sloppe"),
    ],
)
def test_values_of_files_are_checked(field, value, says):
    values = to_json(Presence(phrase=made()))
    values["phrase"] = {**dataclasses.asdict(made()), field: value}
    with pytest.raises(ValueError, match=says):
        from_json(values)


@pytest.mark.parametrize(
    "values", [None, [], {}, {"kind": "other"}, {"kind": "fiber presence", "version": 2}]
)
def test_files_of_another_kind_are_refused(values):
    with pytest.raises(ValueError, match="expected"):
        from_json(values)
