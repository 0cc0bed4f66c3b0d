import json

import pytest
import torch
from torchvision.ops import box_area, box_iou, clip_boxes_to_image, generalized_box_iou_loss

from fiber.ops.boxes import (
    centers,
    clip_to_image,
    decode_deltas,
    paired_giou,
    to_inclusive,
)
from tests.box_deltas import encode_deltas
from tests.golden import FINE

pytestmark = pytest.mark.oldest

RECORDED = FINE / "data_geometry.json"
ONE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


def random_boxes(count, seed=0, size=60.0):
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 4, generator=random, dtype=torch.float64) * size
    low = torch.minimum(corners[:, :2], corners[:, 2:])
    high = torch.maximum(corners[:, :2], corners[:, 2:])
    return torch.cat([low, high + 1], dim=1)


def plain_overlap(a, b):
    """Intersection, union and enclosing area in Python's own floats."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    enclosing = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return width * height, union, enclosing


def test_no_boxes():
    assert paired_giou(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)
    assert decode_deltas(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)


def test_giou_of_empty_boxes_is_finite():
    empty = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert torch.isfinite(paired_giou(empty, empty)).all()


def test_giou_equals_plain_arithmetic():
    first, second = random_boxes(9), random_boxes(9, seed=2)
    for value, a, b in zip(
        paired_giou(first, second, epsilon=0.0), first.tolist(), second.tolist(), strict=True
    ):
        intersection, union, enclosing = plain_overlap(a, b)
        expected = intersection / union - (enclosing - union) / enclosing
        assert value.item() == pytest.approx(expected, abs=1e-12)


def test_giou_takes_an_inverted_box_as_empty_at_its_first_corner():
    inverted = torch.tensor([[10.0, 10.0, 4.0, 2.0]])
    at_corner = torch.tensor([[10.0, 10.0, 10.0, 10.0]])
    assert torch.equal(paired_giou(inverted, ONE), paired_giou(at_corner, ONE))


def test_torchvision_giou_loss_is_not_the_published_one():
    inverted = torch.tensor([[10.0, 10.0, 4.0, 2.0]])
    assert 1 - generalized_box_iou_loss(inverted, ONE) > paired_giou(inverted, ONE) + 0.1
    # For boxes below a pixel the last bits differ, because epsilon is added elsewhere.
    first, second = random_boxes(99).float() / 600, random_boxes(99, seed=2).float() / 600
    loss, ours = generalized_box_iou_loss(first, second), 1 - paired_giou(first, second)
    torch.testing.assert_close(loss, ours, rtol=1e-5, atol=1e-6)
    assert not torch.equal(loss, ours)


@pytest.mark.parametrize("anchor_size", [1.0, 24.0, 63.5])
def test_decoding_inverts_encoding(anchor_size):
    boxes = random_boxes(11)
    anchors = random_boxes(11, seed=3)
    anchors[:, 2:] = anchors[:, :2] + anchor_size
    deltas = encode_deltas(boxes, anchors)
    torch.testing.assert_close(decode_deltas(deltas, anchors), boxes, rtol=0, atol=1e-9)


def test_predicted_sizes_are_bounded():
    anchors = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    (box,) = decode_deltas(torch.tensor([[0.0, 0.0, 1e6, 1e6]]), anchors)
    assert (box[2:] - box[:2]).tolist() == pytest.approx([1000, 1000], rel=1e-5)


def test_clipping_keeps_a_pixel():
    boxes = torch.tensor(
        [[-5.0, -5.0, 700.0, 500.0], [650.0, 10.0, 660.0, 20.0], [-9.0, -9.0, -4.0, -4.0]]
    )
    clipped = clip_to_image(boxes, 480, 640)
    assert clipped.tolist() == [[0, 0, 640, 480], [639, 10, 640, 20], [0, 0, 1, 1]]
    # torchvision leaves boxes of no area.
    assert box_area(clip_boxes_to_image(boxes, (480, 640))).tolist() == [640 * 480, 0, 0]


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORDED.read_text())


def half_open(boxes):
    """Recorded boxes have inclusive corners."""
    return torch.tensor(boxes) + torch.tensor([0.0, 0.0, 1.0, 1.0])


def test_coder_equals_the_published_one(recorded):
    case = recorded["box_coder"]
    anchors = half_open(case["anchors"])
    encoded = encode_deltas(half_open(case["gt"]), anchors)
    torch.testing.assert_close(encoded, torch.tensor(case["encoded"]), rtol=1e-5, atol=1e-4)
    for deltas, boxes in (("encoded", "decoded_of_encoded"), ("deltas", "decoded_deltas")):
        decoded = to_inclusive(decode_deltas(torch.tensor(case[deltas]), anchors))
        torch.testing.assert_close(decoded, torch.tensor(case[boxes]), rtol=1e-5, atol=1e-3)


def test_torchvision_iou_of_half_open_boxes_is_the_published_one_of_inclusive_boxes(recorded):
    case = recorded["boxlist_iou_plus_one"]
    iou = box_iou(half_open(case["a"]), half_open(case["b"]))
    torch.testing.assert_close(iou, torch.tensor(case["iou"]), rtol=0, atol=1e-6)
    boxes = recorded["boxlist"]
    assert box_area(half_open(boxes["boxes"])).tolist() == pytest.approx(boxes["area"])


def test_box_loss_equals_the_published_one(recorded):
    case = recorded["giou_loss"]
    anchors = half_open(case["anchors"])
    predicted, target = (
        to_inclusive(decode_deltas(torch.tensor(case[name]), anchors))
        for name in ("pred_deltas", "target_deltas")
    )
    loss = 1 - paired_giou(predicted, target)
    expected = torch.tensor(case["per_box_loss_1_minus_giou"])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    weights = torch.tensor(case["weights"])
    assert (weights * loss).sum().item() == pytest.approx(case["weighted_sum"], rel=1e-5)


def test_criterion_of_referring_expressions_is_this_giou(recorded):
    case = recorded["refexp_generalized_iou"]
    target = torch.tensor(case["gt_xyxy"]).expand(len(case["pred"]), 4)
    giou = paired_giou(torch.tensor(case["pred"]), target)
    expected = torch.tensor(case["giou"]).flatten()
    torch.testing.assert_close(giou, expected, rtol=0, atol=1e-6)


def test_centers():
    assert centers(torch.tensor([[2.0, 3.0, 6.0, 5.0]])).tolist() == [[4, 4]]
