import pytest
import torch

from fiber.models.fiber.pyramid import FeaturePyramid, drop_block

pytestmark = pytest.mark.oldest


def pyramid(drop=False):
    torch.manual_seed(0)
    return FeaturePyramid((3, 5, 7), 8, drop_block=drop)


def maps(batch, height, width):
    """Three maps, the last of height x width."""
    return [
        torch.randn(batch, channels, height * scale, width * scale)
        for channels, scale in ((3, 4), (5, 2), (7, 1))
    ]


@pytest.mark.parametrize(
    ("coarsest", "expected"),
    [
        pytest.param((1, 1), [(4, 4), (2, 2), (1, 1), (1, 1), (1, 1)], id="one location"),
        pytest.param((3, 5), [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)], id="odd"),
        pytest.param((4, 8), [(16, 32), (8, 16), (4, 8), (2, 4), (1, 2)], id="even"),
    ],
)
def test_level_sizes(coarsest, expected):
    levels = pyramid()(maps(2, *coarsest))
    assert [tuple(level.shape) for level in levels] == [(2, 8, *size) for size in expected]


def test_finer_levels_read_coarser_maps_but_not_vice_versa():
    model = pyramid()
    inputs = [each.requires_grad_() for each in maps(1, 2, 2)]
    levels = model(inputs)

    def seen(level):
        grads = torch.autograd.grad(
            levels[level].sum(), inputs, retain_graph=True, allow_unused=True
        )
        return [grad is not None and bool(grad.abs().sum() > 0) for grad in grads]

    assert seen(0) == [True, True, True]
    assert seen(1) == [False, True, True]
    assert seen(2) == [False, False, True]
    assert seen(4) == [False, False, True]


def test_coarsest_level_is_computed_from_the_rectified_previous_level():
    model = pyramid()
    levels = model(maps(1, 4, 4))
    assert torch.equal(levels[4], model.p7(levels[3].relu()))
    assert not torch.allclose(levels[4], model.p7(levels[3]))


def test_drop_block_applies_to_two_levels_in_training_only():
    inputs = maps(2, 4, 4)
    model = pyramid(drop=True)
    plain = model.eval()(inputs)
    torch.manual_seed(1)
    dropped = model.train()(inputs)
    same = [torch.equal(a, b) for a, b in zip(plain, dropped, strict=True)]
    assert same == [False, False, True, True, True]
    model.drop_block = False
    assert all(torch.equal(a, b) for a, b in zip(plain, model(inputs), strict=True))


def test_drop_block_drops_squares_across_channels_and_keeps_the_sum():
    torch.manual_seed(0)
    kept = drop_block(torch.ones(4, 3, 40, 50))
    assert (kept == kept[:, :1]).all()
    zeros = kept[:, 0] == 0
    # Published: seeds at 0.3 / 9, each 3 x 3, some overlapping.
    assert 0.22 < zeros.float().mean() < 0.30
    assert kept.mean().item() == pytest.approx(1, abs=1e-5)
    # Every dropped location lies in a fully dropped 3 x 3 square, clipped to the map.
    dropped = torch.nn.functional.pad(zeros.float(), (1, 1, 1, 1), value=1)
    whole = -torch.nn.functional.max_pool2d(-dropped, 3, stride=1)
    covered = torch.nn.functional.max_pool2d(whole, 3, stride=1, padding=1)
    assert (covered[zeros] == 1).all()


def test_drop_block_of_a_fully_dropped_map_is_zero():
    torch.manual_seed(0)
    outputs = [drop_block(torch.ones(1, 1, 1, 1)).item() for _ in range(200)]
    assert set(outputs) == {0.0, 1.0}
