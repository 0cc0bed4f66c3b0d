import math

import numpy as np
import pytest

from fiber.metrics.regions import SemanticCounts, phrase_areas, phrase_mask_metrics
from tests.metrics.generated_masks import CLASSES, generated

#: Rounding of sums of a few hundred numbers.
ROUNDING = 1e-9


def test_nothing_is_nan():
    assert all(math.isnan(value) for value in SemanticCounts(3).metrics().values())
    only_ignored = SemanticCounts(3)
    only_ignored.add([[0, 1]], [[255, 255]])
    assert all(math.isnan(value) for value in only_ignored.metrics().values())
    values = phrase_mask_metrics([])
    assert len(values) == 7 and all(math.isnan(value) for value in values.values())


def test_a_class_that_is_predicted_and_never_true():
    counts = SemanticCounts(3)
    counts.add([[0, 0, 2, 1]], [[0, 0, 1, 1]])
    values = counts.metrics()
    assert values["miou"] == pytest.approx((1 + 1 / 2) / 2)
    assert values["published_miou"] == pytest.approx((1 + 1 / 2) / 3)
    assert counts.iou_by_class().tolist()[:2] == [1.0, 0.5]
    assert math.isnan(counts.iou_by_class()[2])


def classes_of(own, default):
    return np.array([default, *(own.labels.get(n, default) for n in range(1, 30))])[own.ids]


def test_generated_maps_equal_the_formulas():
    counts, true, found = SemanticCounts(CLASSES), [], []
    for truth, prediction in generated():
        # The last class is never true.
        real = classes_of(truth, 255)
        real = np.where(real == CLASSES - 1, 255, real)
        own = classes_of(prediction, 0)
        counts.add(own, real)
        kept = real != 255
        true.append(real[kept])
        found.append(own[kept])
    real, own = np.concatenate(true), np.concatenate(found)
    right = [((real == c) & (own == c)).sum() for c in range(CLASSES)]
    union = [((real == c) | (own == c)).sum() for c in range(CLASSES)]
    occurs = [(real == c).any() for c in range(CLASSES)]
    iou = [r / u for r, u, o in zip(right, union, occurs, strict=True) if o]
    values = counts.metrics()
    assert sum(occurs) == CLASSES - 1 and union[-1]
    assert values["miou"] == pytest.approx(np.mean(iou), abs=ROUNDING)
    assert values["published_miou"] == pytest.approx(np.sum(iou) / CLASSES, abs=ROUNDING)
    assert values["pixel_accuracy"] == pytest.approx((real == own).mean(), abs=ROUNDING)


def test_generated_phrases_equal_the_formulas():
    pairs = [(t.ids > 0, p.ids > 0) for t, p in generated()] + [
        (np.zeros((3, 3), bool), np.zeros((3, 3), bool))
    ]
    values = phrase_mask_metrics([phrase_areas(found, truth) for truth, found in pairs])
    both = np.array([(a & b).sum() for a, b in pairs])
    either = np.array([(a | b).sum() for a, b in pairs])
    iou = both / (either + 1e-6)
    assert values["ciou"] == pytest.approx(both.sum() / either.sum(), abs=ROUNDING)
    assert values["miou"] == pytest.approx(iou.mean(), abs=ROUNDING)
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        expected = (iou >= threshold).mean()
        assert values[f"precision_at_{threshold}"] == pytest.approx(expected, abs=ROUNDING)
    assert 0.1 < values["precision_at_0.7"] < 0.9


def test_bad_maps_are_named():
    counts = SemanticCounts(3)
    with pytest.raises(ValueError, match=r"found class 3: expected 0 to 2"):
        counts.add([[3]], [[0]])
    with pytest.raises(ValueError, match=r"true class -1: expected 0 to 2 or 255"):
        counts.add([[0]], [[-1]])
    with pytest.raises(ValueError, match=r"\(1, 1\), true ones \(1, 2\)"):
        counts.add([[0]], [[0, 0]])
    assert not counts.pixels.any()
    with pytest.raises(ValueError, match=r"\(1, 1\), the true one \(2, 1\)"):
        phrase_areas([[True]], [[True], [True]])
