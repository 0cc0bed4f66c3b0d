"""The example images: what is drawn where."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from fiber.demo.contact_sheet import (
    BOX_COLORS,
    IMAGE_WIDTH,
    draw_image,
    draw_sheet,
    draw_tile,
    one_box_each,
)
from fiber.demo.examples import Example, Examples, PredictedBox, Scored, Twice
from fiber.visualize import COLORS

FAR = [(60, 20, 80, 40)]


@pytest.fixture
def example(tmp_path):
    """A gray image of 96 x 48 pixels with one box that is right."""
    Image.new("RGB", (96, 48), (128, 128, 128)).save(tmp_path / "a.png")
    box = PredictedBox(
        text="the ring", box_xyxy=(10.0, 10.0, 30.0, 30.0), truths_xyxy=[(10.0, 11.0, 30.0, 30.0)]
    )
    return Example(
        image="a.png",
        split="val",
        boxes=[box],
        question="what color is it?",
        answer="red",
        truth="red",
    )


def boxed(example, *boxes):
    claims = [
        PredictedBox(text="a", box_xyxy=box, truths_xyxy=truths or FAR) for box, truths in boxes
    ]
    return dataclasses.replace(example, boxes=claims)


class TestImage:
    def test_nothing_to_draw(self, example, tmp_path):
        pixels = np.asarray(draw_image(boxed(example), tmp_path))
        assert pixels.shape == (IMAGE_WIDTH // 2, IMAGE_WIDTH, 3)
        assert (pixels == 128).all()

    @pytest.mark.parametrize(("width", "scale"), [(100, 2), (288, 1), (400, 1)])
    def test_it_is_enlarged_by_a_whole_number(self, example, tmp_path, width, scale):
        pixels = np.random.default_rng(0).integers(0, 256, (50, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        drawn = np.asarray(draw_image(boxed(example), tmp_path))
        assert np.array_equal(drawn, pixels.repeat(scale, axis=0).repeat(scale, axis=1))

    def test_no_box_was_predicted(self, example, tmp_path):
        pixels = np.asarray(draw_image(boxed(example, (None, [])), tmp_path))
        # Only the true box is drawn.
        assert {tuple(color) for color in pixels[59, 180:240].tolist()} == {(0,) * 3, (255,) * 3}
        assert (pixels[:, :170] == 128).all()

    def test_the_boxs_edge_is_where_the_box_is(self, example, tmp_path):
        pixels = np.asarray(draw_image(boxed(example, ((10, 10, 30, 30), [])), tmp_path))
        # Enlarged three times; the predicted box is orange, four pixels thick, around the object.
        orange = COLORS[BOX_COLORS[0]]
        assert (pixels[45, 26:30] == orange).all()
        assert (pixels[45, 90:94] == orange).all()
        assert (pixels[45, 30:90] == 128).all()
        # The true one is dashed in black and white, one pixel thick.
        edge = pixels[59, 180:240]
        assert {tuple(color) for color in edge.tolist()} == {(0, 0, 0), (255, 255, 255)}
        assert (pixels[60, 180:240] == 128).all()

    def test_a_true_box_is_drawn_on_the_line_of_the_predicted_one(self, example, tmp_path):
        same = boxed(example, ((10, 10, 30, 30), [(10, 10, 30, 30)]))
        pixels = np.asarray(draw_image(same, tmp_path))
        assert {tuple(color) for color in pixels[90, 30:90].tolist()} == {(0,) * 3, (255,) * 3}
        assert (pixels[91:94, 30:90] == COLORS[BOX_COLORS[0]]).all()

    def test_boxes_on_one_object_stay_visible(self, example, tmp_path):
        pixels = np.asarray(draw_image(boxed(example, *[((10, 10, 30, 30), [])] * 3), tmp_path))
        # Three lines side by side, each four pixels thick, below the numbers.
        edges = [tuple(pixels[80, 26 - 4 * number].tolist()) for number in range(3)]
        assert edges == [COLORS[index] for index in BOX_COLORS[:3]]

    @pytest.mark.parametrize("box", [(-20, -5, 200, 90), (5, 5, 5, 5)])
    def test_a_box_that_leaves_the_image_or_is_empty(self, example, tmp_path, box):
        assert draw_image(boxed(example, (box, [(0, 0, 96, 48)])), tmp_path).width == IMAGE_WIDTH


class TestTile:
    def test_texts_are_below(self, example, tmp_path):
        image, tile = draw_image(example, tmp_path), draw_tile(example, tmp_path)
        assert tile.width == IMAGE_WIDTH
        assert np.array_equal(np.asarray(tile)[: image.height], np.asarray(image))
        assert (np.asarray(tile)[image.height :] != 255).any()

    def test_long_texts_make_it_higher(self, example, tmp_path):
        longer = dataclasses.replace(example, question="a very long question " * 8)
        assert draw_tile(longer, tmp_path).height > draw_tile(example, tmp_path).height


class TestSheet:
    def test_two_images_of_each_split_with_one_box_each(self, example):
        pair = boxed(example, ((0, 0, 9, 9), []), ((5, 5, 9, 9), []))
        twice = [
            Twice(split=split, count=9, both_found=1, by_chance=1.0, shown=[pair] * 2, relations=[])
            for split in ("val", "novel")
        ]
        shown = one_box_each(twice)
        assert [own.boxes for own in shown] == [[box] for _ in range(4) for box in pair.boxes]

    @pytest.mark.parametrize("count", [0, 1, 5])
    def test_any_number_of_images(self, example, tmp_path, count):
        scored = Scored(split="novel", count=9, right=4, hits=[example] * count, misses=[])
        draw_sheet(tmp_path / "sheet.png", tmp_path, Examples(twice=[], scored=scored))
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.height > 144 * -(-count // 4)
            assert count == 0 or sheet.width > 4 * IMAGE_WIDTH
