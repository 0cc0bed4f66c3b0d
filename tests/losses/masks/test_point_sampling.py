import pytest
import torch

from fiber.losses.masks.point_sampling import sample_points, seeded_points, uncertain_points

pytestmark = pytest.mark.oldest


def test_no_maps_have_no_points():
    assert sample_points(torch.zeros(0, 4, 4), torch.zeros(0, 3, 2)).shape == (0, 3)
    drawn = seeded_points(0, [4, 5], "cpu")
    assert uncertain_points(torch.zeros(0, 4, 4), [0, 0], 8, drawn).shape == (0, 8, 2)


def test_centers_borders_and_beyond():
    maps = torch.arange(6.0).view(1, 2, 3)
    centers = torch.tensor([[[1 / 6, 1 / 4], [5 / 6, 3 / 4], [1 / 2, 1 / 2], [0.0, 1 / 4]]])
    # The last point is half outside, where maps are 0: half of 0.
    assert sample_points(maps, centers)[0].tolist() == pytest.approx([0, 5, 2.5, 0], abs=1e-6)
    assert sample_points(maps + 1, centers)[0, 3] == pytest.approx(0.5)


def test_shared_points_equal_those_of_each_map():
    maps = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    points = torch.rand(1, 11, 2, generator=torch.Generator().manual_seed(1))
    shared, own = sample_points(maps, points), sample_points(maps, points.expand(3, -1, -1))
    torch.testing.assert_close(shared, own, rtol=0, atol=1e-6)


def test_uncertain_points_are_those_nearest_to_zero():
    # Certainty grows from left to right.
    logits = torch.linspace(0, 10, 64).expand(1, 4, 64)
    points = uncertain_points(logits, [1], 100, seeded_points(3, [0], "cpu"))
    assert points.shape == (1, 100, 2)
    columns = points[0, :, 0]
    assert columns[:75].max() < 0.5 and columns[75:].max() > 0.7


def test_points_of_an_image_do_not_depend_on_its_batch():
    drawn = seeded_points(7, [3, 8], "cpu")
    first, second = drawn([2, 1], 5), drawn([0, 4], 6)
    alone = seeded_points(7, [8], "cpu")
    assert torch.equal(alone([1], 5), first[2:]) and torch.equal(alone([4], 6), second)
    other = seeded_points(8, [8], "cpu")
    assert not torch.equal(other([1], 5), first[2:])
    assert first.min() >= 0 and first.max() < 1
