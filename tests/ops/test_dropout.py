"""Dropout that is drawn by sample."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fiber.losses.itm import _splitmix
from fiber.ops import dropout as module
from fiber.ops.dropout import (
    SampleDropout,
    attention,
    by_row,
    checkpointed,
    dropout,
    keeps,
    of_rows,
)

pytestmark = pytest.mark.oldest

ROWS = torch.tensor([4, 0, 7, 100_000])


def drawn(rows, *, shape=(6, 5), key=(1, 2), layers=1, **options):
    """Keep masks of some layers, (layers, rows, ...)."""
    with by_row(key, rows, **options):
        return torch.stack([keeps((len(rows), *shape), 0.5, "cpu") for _ in range(layers)])


def test_the_hash_is_that_of_the_other_draws():
    words = np.array([0, 1, 2**63, 2**64 - 1, 123456789], dtype=np.uint64)
    with np.errstate(over="ignore"):
        expected = _splitmix(words)
    assert np.array_equal(
        module._mix(torch.from_numpy(words.view(np.int64))).numpy().view(np.uint64), expected
    )


def test_a_sample_draws_the_same_in_any_batch():
    whole = drawn(ROWS, layers=3)
    for indices in ([0], [1, 3], [3, 2, 1, 0]):
        assert torch.equal(drawn(ROWS[indices], layers=3), whole[:, indices])


def test_a_place_draws_the_same_whatever_comes_after_it():
    whole = drawn(ROWS, shape=(3, 6, 5))
    assert torch.equal(drawn(ROWS, shape=(3, 2, 4)), whole[:, :, :, :2, :4])


def test_numbers_are_independent():
    masks = [
        drawn(torch.arange(8), shape=(40, 50), layers=2),
        drawn(torch.arange(8) + 8, shape=(40, 50), layers=2),
        drawn(torch.arange(8), shape=(40, 50), key=(1, 3), layers=2),
        drawn(torch.arange(8), shape=(40, 50), key=(2, 1), layers=2),
    ]
    # One line for each row of each layer, of 2,000 numbers.
    lines = torch.cat([mask.flatten(0, 1).flatten(1) for mask in masks]).double()
    assert len(lines) == 64
    correlations = torch.corrcoef(lines) - torch.eye(64)
    # The standard deviation of a correlation of 2,000 pairs is 0.022, and there are 2,016 of them.
    assert correlations.abs().max() < 5 * 0.0224
    # So it is of neighbours in both directions.
    maps = lines.view(64, 40, 50) - lines.mean()
    for first, second in ((maps[:, 1:], maps[:, :-1]), (maps[..., 1:], maps[..., :-1])):
        assert abs(float((first * second).mean())) < 0.25 * 5 / math.sqrt(first.numel())


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_that_is_dropped(p):
    inputs = torch.ones(64, 50, 50)
    with by_row((0,), torch.arange(64)):
        outputs = dropout(inputs, p)
    assert outputs.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    # Five standard deviations.
    assert abs(float((outputs == 0).float().mean()) - p) < 5 * math.sqrt(p * (1 - p) / 160_000)


def test_several_rows_of_a_sample():
    for is_repeated, order in ((False, [0, 0, 1, 1]), (True, [0, 1, 0, 1])):
        with by_row((5,), ROWS[:2], is_repeated=is_repeated):
            mask = keeps((4, 30), 0.5, "cpu")
        copies = [order[:n].count(order[n]) for n in range(4)]
        for number in (0, 1):
            with by_row((5,), ROWS[number : number + 1], is_repeated=is_repeated):
                alone = keeps((2, 30), 0.5, "cpu")
            for n in range(4):
                if order[n] == number:
                    assert torch.equal(mask[n], alone[copies[n]])
        assert not torch.equal(mask[0], mask[order.index(0, 1)])
    with by_row((5,), ROWS), pytest.raises(ValueError, match="3 rows; expected a multiple of 4"):
        keeps((3, 2), 0.5, "cpu")


def test_some_of_the_rows():
    with by_row((5,), ROWS):
        keeps((4, 2), 0.5, "cpu")
        whole = keeps((4, 9), 0.5, "cpu")
    with by_row((5,), ROWS):
        keeps((4, 2), 0.5, "cpu")
        for indices in (torch.tensor([0, 2]), torch.tensor([1, 3])):
            with of_rows(indices):
                assert torch.equal(keeps((2, 9), 0.5, "cpu"), whole[indices])
    with of_rows(torch.tensor([0])):
        assert not module.is_by_row()


def test_what_is_computed_again_draws_the_same():
    layers = torch.nn.Sequential(
        torch.nn.Linear(8, 8), SampleDropout(0.5), torch.nn.Linear(8, 8), SampleDropout(0.5)
    )
    inputs = torch.randn(4, 8)
    results = []
    for call in (lambda function, x: function(x), checkpointed):
        layers.zero_grad()
        with by_row((5,), ROWS):
            hidden = call(layers, inputs)
            # Later draws must not move those of the recomputation.
            outputs = call(layers, dropout(hidden, 0.5))
        outputs.square().sum().backward()
        results.append([outputs.detach(), *(p.grad.clone() for p in layers.parameters())])
    assert all(map(torch.equal, *results))


def test_outside_it_is_that_of_pytorch():
    inputs = torch.randn(5, 6)
    torch.manual_seed(0)
    expected = F.dropout(inputs, 0.3)
    torch.manual_seed(0)
    assert torch.equal(dropout(inputs, 0.3), expected)
    torch.manual_seed(0)
    assert torch.equal(SampleDropout(0.3)(inputs), expected)
    with by_row((1,), torch.arange(5)):
        assert dropout(inputs, 0.3, training=False) is inputs
        assert torch.equal(SampleDropout(0.3).eval()(inputs), inputs)


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked):
    query, key, value = (torch.randn(4, 2, n, 3, dtype=torch.float64) for n in (5, 7, 7))
    mask = (
        (torch.arange(7) < torch.tensor([7, 3, 5, 1])[:, None])[:, None, None] if masked else None
    )
    plain = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert torch.equal(attention(query, key, value, mask), plain)
    with by_row((5,), ROWS):
        assert torch.equal(attention(query, key, value, mask), plain)
        found = attention(query, key, value, mask, 0.4)
    with by_row((5,), ROWS):
        kept = keeps((4, 2, 5, 7), 0.4, "cpu")
    scores = query @ key.transpose(-2, -1) / math.sqrt(3)
    if masked:
        scores = scores.masked_fill(~mask, -torch.inf)
    expected = (scores.softmax(-1) * kept / 0.6) @ value
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
