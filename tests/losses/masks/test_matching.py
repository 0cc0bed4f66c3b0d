import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fiber.losses.masks.matching import (
    bce_costs,
    class_costs,
    dice_costs,
    linear_sum_assignment,
    match_masks,
    phrase_costs,
)
from fiber.losses.masks.pixel_losses import mask_dice

pytestmark = pytest.mark.oldest


def test_nothing_is_matched_with_nothing():
    for shape in ((0, 0), (5, 0), (0, 5)):
        found = linear_sum_assignment(torch.zeros(shape))
        assert found.queries.tolist() == found.targets.tolist() == []
        assert found.queries.dtype == torch.int64


def test_pairs_by_hand():
    found = linear_sum_assignment(torch.tensor([[4.0, 1.0], [2.0, 0.0], [3.0, 9.0]]))
    assert (found.queries.tolist(), found.targets.tolist()) == ([0, 1], [1, 0])


@pytest.mark.parametrize("values", [2, 5, 1000, None], ids=["two", "five", "many", "reals"])
def test_pairs_are_those_of_scipy(values):
    """Also where several have the least cost."""
    optimize = pytest.importorskip("scipy.optimize")
    random = np.random.default_rng(0)
    for _ in range(150):
        shape = random.integers(0, 13, 2)
        if values is None:
            costs = random.standard_normal(shape)
        else:
            costs = random.integers(-values, values, shape).astype(np.float64)
        if random.random() < 0.3 and costs.size:
            # Some pairs are not allowed, but one of them is left.
            costs[random.random(shape) < 0.2] = np.inf
            costs[np.arange(min(shape)), np.arange(min(shape))] = 0.0
        found = linear_sum_assignment(torch.from_numpy(costs))
        rows, columns = optimize.linear_sum_assignment(costs)
        assert found.queries.tolist() == rows.tolist(), costs
        assert found.targets.tolist() == columns.tolist(), costs


def test_costs_that_are_no_numbers_are_named():
    with pytest.raises(ValueError, match=r"costs: row 1, column 0 is NaN"):
        linear_sum_assignment(torch.tensor([[0.0, 1.0], [float("nan"), 2.0]]))
    with pytest.raises(ValueError, match=r"costs: every assignment has an infinite cost"):
        linear_sum_assignment(torch.tensor([[float("inf")]]))


def test_costs_are_losses_of_every_pair():
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 9, generator=random, dtype=torch.float64)
    targets = torch.rand(3, 9, generator=random, dtype=torch.float64)
    pairs = [(q, m) for q in range(4) for m in range(3)]
    bce = [F.binary_cross_entropy_with_logits(logits[q], targets[m]) for q, m in pairs]
    dice = [mask_dice(logits[q : q + 1], targets[m : m + 1])[0] for q, m in pairs]
    torch.testing.assert_close(bce_costs(logits, targets).flatten(), torch.stack(bce))
    torch.testing.assert_close(dice_costs(logits, targets).flatten(), torch.stack(dice))


def test_classes_are_over_classes_and_phrases_over_queries():
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    costs = class_costs(logits, torch.tensor([1, 1, 0]))
    torch.testing.assert_close(costs, -logits.softmax(1)[:, [1, 1, 0]])
    torch.testing.assert_close(phrase_costs(logits), -logits.softmax(0))


def test_masks_and_labels_decide():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :, :4], masks[1, :, 4:] = True, True
    logits = torch.stack([8.0 - 16 * masks[0], 16.0 * masks[0] - 8, torch.zeros(8, 8)])
    points = torch.rand(1, 64, 2, generator=torch.Generator().manual_seed(0))
    same = torch.zeros(3, 2)
    found = match_masks(same, logits, masks, points)
    assert (found.queries.tolist(), found.targets.tolist()) == ([0, 1], [1, 0])
    # A label that only the last query has outweighs its mask.
    sure = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, -90.0]])
    found = match_masks(sure, logits, masks, points)
    assert (found.queries.tolist(), found.targets.tolist()) == ([1, 2], [0, 1])
