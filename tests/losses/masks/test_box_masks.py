import numpy as np
import pytest
import torch

from fiber.losses.masks.box_masks import (
    Assigned,
    BoxMasks,
    box_mask_losses,
    features_at,
    grid_points,
    masks_at,
)
from fiber.models.features import MaskOutput
from fiber.ops.masks import PLACE_TERMS

pytestmark = pytest.mark.oldest

ANCHORS = torch.tensor([[0.0, 0, 16, 16], [8, 8, 24, 24], [0, 0, 32, 32]])


def packed(masks):
    return torch.from_numpy(np.packbits(np.asarray(masks), axis=2))


def test_masks_are_looked_up_at_points():
    random = np.random.default_rng(0)
    masks = random.random((2, 9, 13)) < 0.5
    points = torch.from_numpy(random.uniform(-3, 15, (2, 500, 2)).astype(np.float32))
    found = masks_at(packed(masks), points)
    padded = np.zeros((2, 30, 30), bool)
    padded[:, 5:14, 5:18] = masks
    column, row = points.floor().long().numpy().transpose(2, 0, 1) + 5
    expected = np.stack([own[row[i], column[i]] for i, own in enumerate(padded)])
    assert found.numpy().tolist() == expected.tolist()
    assert masks_at(packed(masks[:0]), points[:0]).shape == (0, 500)


def test_features_are_interpolated_between_the_centers_of_their_places():
    ramp = torch.arange(6.0).expand(1, 1, 4, 6) * 4 + 2
    points = torch.tensor([[[2.0, 8], [10, 3], [13, 9], [22, 2]]])
    found = features_at(ramp, points, torch.tensor([1]), 4)
    torch.testing.assert_close(found[0, :, 0], points[0, :, 0])
    # In an image without boxes, nothing is looked up.
    two = torch.cat((ramp, 100 + ramp))
    found = features_at(two, points, torch.tensor([0, 1]), 4)
    torch.testing.assert_close(found[0, :, 0], 100 + points[0, :, 0])


def test_the_grid_is_regular_and_within_the_box():
    points = grid_points(torch.tensor([[0.0, 0, 32, 64]]))[0].unflatten(0, (16, 16))
    assert points[0, :, 0].tolist() == [2 * place + 1 for place in range(16)]
    assert points[:, 0, 1].tolist() == [4 * place + 2 for place in range(16)]


@pytest.fixture
def masked():
    """Two images of 32 x 32 pixels; the second box has no mask."""
    masks = np.zeros((3, 32, 32), bool)
    masks[0, 4:20, 4:12] = True
    masks[2, 10:30, 2:30] = True
    boxes = torch.tensor([[4.0, 4, 12, 20], [0, 0, 9, 9], [2, 10, 30, 30]])
    return BoxMasks(boxes, torch.tensor([2, 1]), packed(masks))


def output(features, embeddings):
    return MaskOutput([embeddings[:, :2], embeddings[:, 2:]], features, 4)


def test_only_boxes_with_a_mask_have_losses(masked):
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 8, 8, generator=random, requires_grad=True)
    embeddings = torch.randn(2, 3, 3 + PLACE_TERMS, generator=random, requires_grad=True)
    assigned = Assigned(*torch.tensor([[0, 0, 1], [0, 1, 2], [0, 1, 2]]))
    losses = box_mask_losses(output(features, embeddings), ANCHORS, masked, assigned)
    sum(losses.values()).backward()
    has_gradient = embeddings.grad.abs().sum(2) > 0
    assert has_gradient.tolist() == [[True, False, False], [False, False, True]]
    assert features.grad.abs().sum() > 0
    # Each anchor counts once.
    parts = [Assigned(*(part[own : own + 1] for part in assigned)) for own in (0, 2)]
    alone = [box_mask_losses(output(features, embeddings), ANCHORS, masked, own) for own in parts]
    for name, loss in losses.items():
        torch.testing.assert_close(loss, sum(own[name] for own in alone))


def test_no_box(masked):
    features = torch.zeros(2, 3, 8, 8, requires_grad=True)
    empty = BoxMasks(masked.boxes_xyxy[:0], torch.tensor([0, 0]), masked.box_masks[:0])
    assigned = Assigned(*(torch.zeros(0, dtype=torch.int64) for _ in range(3)))
    embeddings = torch.zeros(2, 3, 3 + PLACE_TERMS)
    losses = box_mask_losses(output(features, embeddings), ANCHORS, empty, assigned)
    assert [loss.item() for loss in losses.values()] == [0, 0]


def test_a_right_mask_has_almost_no_loss_and_a_wrong_one_much(masked):
    # The first feature is 1 within the first mask and -1 outside, which a location weights.
    grid = (torch.arange(8) + 0.5) * 4
    rows, columns = torch.meshgrid(grid, grid, indexing="ij")
    inside = masks_at(masked.box_masks[:1], torch.stack((columns, rows), -1).view(1, 64, 2))
    features = torch.zeros(2, 3, 8, 8)
    features[0, 0] = inside.view(8, 8).float() * 2 - 1
    assigned = Assigned(*torch.tensor([[0], [0], [0]]))
    found = {}
    for sign in (1, -1):
        embeddings = torch.zeros(2, 3, 3 + PLACE_TERMS)
        embeddings[0, 0, PLACE_TERMS] = sign * 20
        losses = box_mask_losses(output(features, embeddings), ANCHORS, masked, assigned)
        found[sign] = losses
    assert found[1]["mask_dice"] < 0.1 < 0.8 < found[-1]["mask_dice"]
    assert found[1]["mask_bce"] < 1 < found[-1]["mask_bce"]
