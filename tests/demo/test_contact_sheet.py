"""The contact sheet: what is drawn where."""

import numpy as np
import pytest
from PIL import Image

from fiber.demo.contact_sheet import IMAGE_WIDTH, PredictedBox, Tile, draw_tile
from fiber.visualize import COLORS


@pytest.fixture
def tile(tmp_path):
    """A gray image of 96 x 48 pixels with one claim whose box is right."""
    path = tmp_path / "a.png"
    Image.new("RGB", (96, 48), (128, 128, 128)).save(path)

    def make(**changes):
        claim = PredictedBox(
            text="the ring",
            box_xyxy=(10.0, 10.0, 30.0, 30.0),
            truths_xyxy=[(10.0, 11.0, 30.0, 30.0)],
        )
        values = {
            "image": str(path),
            "split": "val",
            "caption": "",
            "boxes": [claim],
            "question": "what color is it?",
            "answer": "red",
            "truth": "red",
        }
        return Tile(**{**values, **changes})

    return make


class TestClaim:
    def test_no_box(self):
        assert PredictedBox(text="a", box_xyxy=None, truths_xyxy=[(0, 0, 1, 1)]).iou == 0

    def test_the_nearest_of_several(self):
        truths = [(50, 50, 60, 60), (0, 0, 10, 5), (0, 0, 10, 9)]
        assert PredictedBox(
            text="a", box_xyxy=(0, 0, 10, 10), truths_xyxy=truths
        ).iou == pytest.approx(0.9)


class TestTile:
    def test_nothing_to_draw(self, tile):
        pixels = np.asarray(draw_tile(tile(boxes=[])))
        assert pixels.shape[1] == IMAGE_WIDTH
        height = IMAGE_WIDTH // 2
        assert (pixels[:height] == 128).all()
        assert (pixels[height:] != 255).any()

    def test_the_boxs_edge_is_where_the_box_is(self, tile):
        claim = PredictedBox(text="a", box_xyxy=(10, 10, 30, 30), truths_xyxy=[(60, 20, 80, 40)])
        pixels = np.asarray(draw_tile(tile(boxes=[claim])))
        # Enlarged three times; the predicted box is red, three pixels thick.
        assert (pixels[45, 30:33, 0] > 200).all()
        assert (pixels[45, 87:90, 0] > 200).all()
        assert (pixels[45, 33:87] == 128).all()
        assert (pixels[45, 90:] == 128).any()
        # The true one is dashed in black and white, one pixel thick.
        edge = pixels[60, 180:240]
        assert {tuple(color) for color in edge.tolist()} == {(0, 0, 0), (255, 255, 255)}
        assert (pixels[62, 183:237] == 128).all()

    def test_boxes_on_one_object_stay_visible(self, tile):
        claims = [
            PredictedBox(text=text, box_xyxy=(10, 10, 30, 30), truths_xyxy=[(60, 20, 80, 40)])
            for text in ("a", "b", "c")
        ]
        pixels = np.asarray(draw_tile(tile(boxes=claims)))
        # Three lines side by side, each three pixels thick, in the colors of the texts.
        edges = [tuple(pixels[60, 30 + 3 * number].tolist()) for number in range(3)]
        assert edges == [tuple(color) for color in COLORS[:3]]
        assert (pixels[60, 39:81] == 128).all()

    def test_a_box_that_leaves_the_picture(self, tile):
        claim = PredictedBox(text="a", box_xyxy=(-20, -5, 200, 90), truths_xyxy=[(0, 0, 96, 48)])
        assert draw_tile(tile(boxes=[claim])).width == IMAGE_WIDTH

    def test_an_empty_box(self, tile):
        claim = PredictedBox(text="a", box_xyxy=(5, 5, 5, 5), truths_xyxy=[(7, 7, 7, 7)])
        assert draw_tile(tile(boxes=[claim])).width == IMAGE_WIDTH

    def test_long_texts_make_it_higher(self, tile):
        short = draw_tile(tile())
        longer = draw_tile(tile(caption="a very long caption " * 8))
        assert longer.height > short.height
        assert longer.width == short.width
