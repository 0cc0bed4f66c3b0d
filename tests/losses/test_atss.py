import math

import pytest
import torch

from fiber.losses.atss import atss_assign
from fiber.ops.anchors import pyramid_anchors

pytestmark = pytest.mark.oldest

SIZES = [(12, 12), (6, 6), (3, 3), (2, 2), (1, 1)]
STRIDES = (8, 16, 32, 64, 128)


def anchors(scale=3.0):
    return pyramid_anchors(SIZES, STRIDES, scale)


def random_boxes(count, seed=0, size=96):
    """Boxes of 8 to 48 pixels; no two distances to an anchor are equal."""
    random = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=random) * (size - 48)
    return torch.cat([low, low + 8 + torch.rand(count, 2, generator=random) * 40], dim=1)


def plain_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def plain_assignment(levels, boxes, top_k):
    """The definition for one picture, anchor by anchor, in Python's own floats."""
    everything = [anchor for level in levels for anchor in level.tolist()]
    best = [(-1.0, -1)] * len(everything)
    for number, box in enumerate(boxes.tolist()):
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        candidates, start = [], 0
        for level in levels:
            places = range(start, start + len(level))
            away = {
                p: math.dist(
                    middle,
                    (
                        (everything[p][0] + everything[p][2]) / 2,
                        (everything[p][1] + everything[p][3]) / 2,
                    ),
                )
                for p in places
            }
            candidates += sorted(places, key=away.__getitem__)[:top_k]
            start += len(level)
        overlaps = [plain_iou(everything[p], box) for p in candidates]
        mean = sum(overlaps) / len(overlaps)
        deviation = math.sqrt(sum((o - mean) ** 2 for o in overlaps) / (len(overlaps) - 1))
        for place, overlap in zip(candidates, overlaps, strict=True):
            x0, y0, x1, y1 = everything[place]
            # Inclusive corners: the last pixel of anchor and box.
            x, y = (x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2
            inside = min(x - box[0], y - box[1], box[2] - 1 - x, box[3] - 1 - y) > 0.01
            if overlap >= mean + deviation and inside and overlap > best[place][0]:
                best[place] = (overlap, number)
    return [number for _, number in best]


@pytest.mark.parametrize("counts", [[], [0], [0, 0, 0]])
def test_without_boxes_no_anchor_is_taken(counts):
    assigned = atss_assign(anchors(), torch.zeros(0, 4), torch.tensor(counts, dtype=torch.int64))
    assert assigned.shape == (len(counts), 194)
    assert (assigned == -1).all()


@pytest.mark.parametrize("top_k", [1, 3, 9, 500])
@pytest.mark.parametrize(
    "counts",
    [
        pytest.param([1], id="one box"),
        pytest.param([0, 3, 0, 8, 1], id="ragged"),
        pytest.param([20, 20], id="crowded"),
    ],
)
def test_equals_the_definition(counts, top_k):
    boxes = random_boxes(sum(counts))
    assigned = atss_assign(anchors(), boxes, torch.tensor(counts), top_k=top_k)
    start = 0
    for row, count in zip(assigned.tolist(), counts, strict=True):
        expected = plain_assignment(anchors(), boxes[start : start + count], top_k)
        assert row == [start + place if place >= 0 else -1 for place in expected]
        start += count


def test_most_boxes_of_a_scene_are_learned():
    boxes = random_boxes(40, seed=3)
    assigned = atss_assign(anchors(), boxes, torch.full((10,), 4))
    assert len(assigned[assigned >= 0].unique()) >= 38


def test_of_two_boxes_the_better_overlap_wins():
    (anchor,) = anchors()[0][5 * 12 + 5 :][:1]
    near, far = anchor.clone(), anchor + torch.tensor([-3.0, -3.0, 5.0, 5.0])
    boxes = torch.stack([far, near])
    assigned = atss_assign(anchors(), boxes, torch.tensor([2]))
    assert assigned[0, 5 * 12 + 5] == 1


def test_boxes_of_other_pictures_do_not_matter():
    boxes = random_boxes(5)
    together = atss_assign(anchors(), boxes, torch.tensor([2, 3]))
    alone = atss_assign(anchors(), boxes[2:], torch.tensor([3]))
    assert torch.equal(together[1], torch.where(alone[0] >= 0, alone[0] + 2, -1))


@pytest.mark.parametrize(
    "box",
    [
        pytest.param([30.0, 30.0, 30.0, 30.0], id="no area"),
        pytest.param([200.0, 200.0, 260.0, 260.0], id="outside the map"),
        pytest.param([10.0, 10.0, 11.0, 11.0], id="one pixel off every centre"),
    ],
)
def test_a_box_that_no_anchor_can_learn_is_left(box):
    assert (atss_assign(anchors(), torch.tensor([box]), torch.tensor([1])) == -1).all()


def test_a_picture_in_a_larger_map_is_assigned_as_alone():
    """Anchors outside the picture's own map are no candidates, however near they are."""
    strides, generator = (8, 16, 32), torch.Generator().manual_seed(0)
    whole, own = [(20, 20), (10, 10), (5, 5)], [(12, 8), (6, 4), (3, 2)]
    corners = torch.rand(200, 4, generator=generator) * torch.tensor([64.0, 96.0, 64.0, 96.0])
    low, high = corners.view(-1, 2, 2).amin(1), corners.view(-1, 2, 2).amax(1)
    boxes = torch.cat([low, high + 1], dim=1)
    inside = torch.cat(
        [
            ((torch.arange(h)[:, None] < own_h) & (torch.arange(w) < own_w)).flatten()
            for (h, w), (own_h, own_w) in zip(whole, own, strict=True)
        ]
    )
    for box in boxes:
        count = torch.tensor([1])
        alone = atss_assign(pyramid_anchors(own, strides, 4.0), box[None], count)
        together = atss_assign(
            pyramid_anchors(whole, strides, 4.0), box[None], count, inside=inside[None]
        )
        assert torch.equal(together[:, inside], alone)
        assert (together[:, ~inside] == -1).all()
