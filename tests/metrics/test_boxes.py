import numpy as np
import pytest
import torch
from torchvision.ops import generalized_box_iou

from fiber.metrics.boxes import as_boxes, overlaps_with_own, pairwise_giou, pairwise_iou


def random_boxes(count, seed):
    corners = np.random.default_rng(seed).uniform(0, 10, (count, 2, 2))
    return np.concatenate([corners.min(1), corners.max(1)], axis=1)


def test_no_boxes():
    assert as_boxes([]).shape == (0, 4)
    assert pairwise_iou([], random_boxes(3, 0)).shape == (0, 3)
    assert pairwise_giou(random_boxes(3, 0), []).shape == (3, 0)


def test_points_do_not_divide_by_zero():
    point, box = [[2.0, 2.0, 2.0, 2.0]], [[1.0, 1.0, 3.0, 3.0]]
    assert pairwise_iou(point, point)[0, 0] == 0.0
    assert pairwise_iou(point, box)[0, 0] == 0.0
    assert pairwise_giou(point, point)[0, 0] == 0.0
    assert pairwise_giou(point, box)[0, 0] == 0.0


def test_inverted_boxes_hit_nothing():
    inverted, box = [[100.0, 100.0, 0.0, 0.0]], [[40.0, 40.0, 60.0, 60.0]]
    assert pairwise_iou(inverted, box)[0, 0] == 0.0
    assert pairwise_giou(inverted, box)[0, 0] <= 0.0
    # Alone, torchvision gives it a positive area and a GIoU far above 1.
    assert generalized_box_iou(torch.tensor(inverted), torch.tensor(box))[0, 0] > 1


def test_equals_plain_arithmetic():
    first, second = random_boxes(7, 0), random_boxes(5, 1)
    iou, giou = pairwise_iou(first, second), pairwise_giou(first, second)
    for i, a in enumerate(first.tolist()):
        for j, b in enumerate(second.tolist()):
            width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
            height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
            area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
            union = area - width * height
            hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
            assert iou[i, j] == pytest.approx(width * height / union, abs=1e-12)
            expected = width * height / union - (hull - union) / hull
            assert giou[i, j] == pytest.approx(expected, abs=1e-12)
    assert (iou > 0.2).any() and (iou == 0).any()


def test_by_hand():
    first, second = [[0, 0, 2, 2]], [[1, 0, 3, 2], [4, 0, 6, 2]]
    assert pairwise_iou(first, second)[0] == pytest.approx([1 / 3, 0.0])
    assert pairwise_giou(first, second)[0] == pytest.approx([1 / 3, -1 / 3])


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"shape \(4,\).*\(n, 4\)"):
        as_boxes([0, 0, 1, 1])


@pytest.mark.parametrize("overlap", [pairwise_iou, pairwise_giou])
def test_overlaps_with_own_boxes_are_those_of_single_calls(overlap):
    rng = np.random.default_rng(0)
    counts = [3, 0, 1, *rng.integers(0, 5, 200)]
    boxes = [random_boxes(count, number) for number, count in enumerate(counts)]
    own = random_boxes(len(counts), 1000)
    found = overlaps_with_own(overlap, boxes, own)
    assert len(found) == len(counts)
    for values, each, box in zip(found, boxes, own, strict=True):
        assert np.array_equal(values, overlap(each, box[None])[:, 0])
    assert overlaps_with_own(overlap, [], own[:0]) == []
    with pytest.raises(ValueError, match="expected 203 arrays of boxes, one per box, got 2"):
        overlaps_with_own(overlap, boxes[:2], own)
