import json

import pytest

from fiber.ops.anchors import level_anchors, pyramid_anchors
from fiber.ops.boxes import centers, to_inclusive
from tests.golden import FINE

pytestmark = pytest.mark.oldest

RECORDED = FINE / "data_geometry.json"
STRIDES = (8, 16, 32, 64, 128)


@pytest.mark.parametrize("size", [(0, 4), (4, 0)])
def test_an_empty_map_has_no_anchors(size):
    assert level_anchors(size, 8, 8.0).shape == (0, 4)


def test_anchors_stand_on_the_centres_of_their_locations_row_by_row():
    anchors = level_anchors((2, 3), 8, 3.0)
    assert anchors.shape == (6, 4)
    assert centers(anchors).tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    assert ((anchors[:, 2:] - anchors[:, :2]) == 24).all()


def test_levels_follow_their_strides():
    levels = pyramid_anchors([(3, 3), (2, 2), (1, 1)], (8, 16, 32), 2.0)
    assert [len(level) for level in levels] == [9, 4, 1]
    assert levels[2].tolist() == [[-16, -16, 48, 48]]


def test_first_anchors_are_the_published_ones():
    cells = json.loads(RECORDED.read_text())["cell_anchors_base"]
    for stride, cell in zip(STRIDES, cells, strict=True):
        assert to_inclusive(level_anchors((1, 1), stride, 8.0)).tolist() == cell
