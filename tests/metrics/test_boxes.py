import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou

from fiber.metrics.boxes import as_boxes, pairwise_giou, pairwise_iou


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
    assert pairwise_giou(point, point)[0, 0] == 0.0
    assert pairwise_giou(point, box)[0, 0] == 0.0


def test_by_hand():
    first, second = [[0, 0, 2, 2]], [[1, 0, 3, 2], [4, 0, 6, 2]]
    assert pairwise_iou(first, second)[0] == pytest.approx([1 / 3, 0.0])
    assert pairwise_giou(first, second)[0] == pytest.approx([1 / 3, -1 / 3])


def test_equals_torchvision():
    first, second = random_boxes(17, 1), random_boxes(9, 2)
    tensors = torch.from_numpy(first), torch.from_numpy(second)
    # Both in float64, of numbers near 1.
    np.testing.assert_allclose(pairwise_iou(first, second), box_iou(*tensors), atol=1e-14)
    np.testing.assert_allclose(
        pairwise_giou(first, second), generalized_box_iou(*tensors), atol=1e-14
    )


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"shape \(4,\).*\(n, 4\)"):
        as_boxes([0, 0, 1, 1])
