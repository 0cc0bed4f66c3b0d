import pytest
import torch

from fiber.ops.masks import mask_boxes, resize_masks
from fiber.ops.shrink_masks import shrink_masks

pytestmark = pytest.mark.oldest


def test_boxes_are_half_open_and_empty_masks_have_none():
    masks = torch.zeros(4, 6, 9, dtype=torch.bool)
    masks[1, 2:5, 3:7] = True
    masks[2, 0, 0] = masks[2, 5, 8] = True
    masks[3, 4, 8] = True
    expected = [[0, 0, 0, 0], [3, 2, 7, 5], [0, 0, 9, 6], [8, 4, 9, 5]]
    assert mask_boxes(masks).tolist() == expected
    assert mask_boxes(masks[:0]).shape == (0, 4)


def test_resizing_is_linear_and_keeps_constants():
    torch.manual_seed(0)
    features, weights = torch.randn(1, 5, 12, 16), torch.randn(3, 5)
    product = torch.einsum("kc,bchw->bkhw", weights, features)
    resized = torch.einsum("kc,bchw->bkhw", weights, resize_masks(features, (3, 4)))
    torch.testing.assert_close(resize_masks(product, (3, 4)), resized, rtol=0, atol=1e-5)
    constant = resize_masks(torch.full((1, 1, 7, 5), 0.3), (20, 11))
    torch.testing.assert_close(constant, torch.full((1, 1, 20, 11), 0.3))


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (5, 2)])
def test_shrinking_equals_resizing(factor, size):
    torch.manual_seed(0)
    masks = torch.randn(2, 3, size[0] * factor, size[1] * factor)
    # Of the values of float32.
    torch.testing.assert_close(
        shrink_masks(masks, factor), resize_masks(masks, size), rtol=0, atol=2e-6
    )
