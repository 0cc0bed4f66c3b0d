import pytest
import torch
import torch.nn.functional as F

from fiber.losses.masks.pixel_losses import mask_bce, mask_dice, query_class_loss

pytestmark = pytest.mark.oldest


def test_no_masks_have_no_losses():
    nothing = torch.zeros(0, 5)
    assert mask_bce(nothing, nothing).shape == mask_dice(nothing, nothing).shape == (0,)


def test_by_hand():
    logits, targets = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert mask_bce(logits, targets).item() == pytest.approx(0.693147, abs=1e-6)
    # 1 - (2 * 0.5 + 1) / (1 + 1 + 1)
    assert mask_dice(logits, targets).item() == pytest.approx(1 / 3)
    right = torch.tensor([[50.0, -50.0]])
    assert mask_bce(right, targets).item() == pytest.approx(0.0, abs=1e-12)
    assert mask_dice(right, targets).item() == pytest.approx(0.0, abs=1e-6)


def test_the_background_weighs_less():
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[3, 3, 0], [3, 2, 3]])
    weights = torch.tensor([1.0, 1.0, 1.0, 0.1])
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weights)
    torch.testing.assert_close(query_class_loss(logits, labels), expected)
    half = query_class_loss(logits.bfloat16(), labels)
    assert half.dtype == torch.float32
