"""Boxes, labels, captions and sheets: legible, inside the image, and not over one another."""

import itertools
import random
import warnings

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fiber import visualize
from fiber.visualize import (
    COLORS,
    add_caption,
    draw_boxes,
    draw_dashed_box,
    drawable,
    make_sheet,
    place_labels,
    wrap_text,
)

SIZE = (300, 400)
BLACK = (0, 0, 0)


def ink(text, font):
    image = Image.new("L", (200, 30), 255)
    ImageDraw.Draw(image).text((2, 2), text, 0, font)
    return image.tobytes()


@pytest.fixture
def only_pillows_font(monkeypatch):
    monkeypatch.setattr(visualize, "_FONT_FILES", ())
    monkeypatch.setattr(visualize.importlib.util, "find_spec", lambda name: None)
    for cached in (visualize._fonts, visualize._warn_once):
        cached.cache_clear()
    yield
    for cached in (visualize._fonts, visualize._warn_once):
        cached.cache_clear()


class TestDrawable:
    def test_no_text(self):
        assert drawable("", 14)[0] == ""

    def test_missing_characters_are_replaced(self, only_pillows_font):
        with pytest.warns(RuntimeWarning, match="no installed font"):
            text, font = drawable("a café, naïve", 14)
        assert text == "a cafe, naive"
        # Warned of once.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert drawable("Ǆ 犬", 14)[0] == "DZ ?"
            assert drawable("plain «text»", 14)[0] == "plain «text»"
        # The replacement has glyphs of its own; missing characters all look the same.
        assert ink("é", font) == ink("\ue123", font) != ink(text[5], font)

    def test_a_font_that_has_all_characters_is_preferred(self):
        text, font = drawable("café Straße", 14)
        if font.getname()[0] == "Aileron":
            pytest.skip("none of the fonts with more characters is installed")
        assert text == "café Straße"
        assert drawable("cafe\u0301", 14)[0] == "café"
        assert ink("é", font) != ink("e", font) != ink("\ue123", font)

    def test_line_breaks(self):
        assert drawable(" two\nlines\t", 14)[0] == "two lines"


class TestWrap:
    font = drawable("", 13)[1]

    def test_no_text(self):
        assert wrap_text("", self.font, 100) == [""]

    def test_all_words_stay_in_order(self):
        text = "the small striped cyan triangle to the left of the large dotted yellow heart " * 3
        lines = wrap_text(text, self.font, 284)
        assert " ".join(lines) == text.strip()
        assert len(lines) > 3
        assert max(map(self.font.getlength, lines)) <= 284

    @pytest.mark.parametrize("text", ["x" * 200, "a " + "x" * 200 + " b", "犬" * 90])
    def test_a_long_word_is_broken(self, text):
        lines = wrap_text(text, self.font, 284)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert max(map(self.font.getlength, lines)) <= 284

    def test_a_width_of_less_than_a_character(self):
        assert wrap_text("abc", self.font, 1) == ["a", "b", "c"]
        assert wrap_text("abc", self.font, 1, max_lines=1) == ["…"]

    def test_more_lines_than_there_is_room_for(self):
        lines = wrap_text("one two three four five six seven " * 9, self.font, 100, max_lines=2)
        assert len(lines) == 2 and lines[1].endswith("…")
        assert self.font.getlength(lines[1]) <= 100
        assert wrap_text("one", self.font, 100, max_lines=1) == ["one"]


class TestCaption:
    def test_the_image_stays_as_it_is(self):
        image = Image.new("RGB", (60, 20), (9, 9, 9))
        for above in (False, True):
            captioned = np.asarray(add_caption(image, [("a", BLACK)], size=12, above=above))
            assert captioned.shape[1] == 60
            shown = captioned[-20:] if above else captioned[:20]
            assert (shown == 9).all()
            band = captioned[:-20] if above else captioned[20:]
            assert band.min() < 100 and (band[:3] == 255).all()
        assert (np.asarray(image) == 9).all()

    def test_a_long_text_makes_it_higher(self):
        image = Image.new("RGB", (100, 10))
        heights = [add_caption(image, [("word " * n, BLACK)], size=12).height for n in (1, 20, 60)]
        assert heights == sorted(set(heights))
        fixed = {
            add_caption(image, [("word " * n, BLACK)], size=12, max_lines=2).height
            for n in (0, 1, 20, 60)
        }
        assert len(fixed) == 1

    def test_colors_of_texts(self):
        red = (255, 0, 0)
        image = Image.new("RGB", (100, 10))
        band = np.asarray(add_caption(image, [("a", BLACK), ("b", red)], size=20))[10:]
        assert (band == BLACK).all(2).any() and (band == red).all(2).any()


def overlaps(places):
    def shared(a, b):
        width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        return width > 0 and height > 0

    return [(a, b) for a, b in itertools.combinations(places, 2) if shared(a, b)]


class TestPlaceLabels:
    def test_no_box_and_one_box(self):
        assert place_labels([], [], SIZE).shape == (0, 4)
        assert place_labels([(50, 60, 90, 100)], [(30, 10)], SIZE).tolist() == [[50, 50, 80, 60]]
        # At the upper border it is below the box, and inside a box without room around it.
        assert place_labels([(50, 4, 90, 100)], [(30, 10)], SIZE).tolist() == [[50, 100, 80, 110]]
        assert place_labels([(50, 4, 90, 295)], [(30, 10)], SIZE).tolist() == [[50, 4, 80, 14]]
        # One that is wider than the image begins at its border.
        assert place_labels([(50, 60, 90, 100)], [(900, 10)], SIZE)[0, :2].tolist() == [0, 50]

    @pytest.mark.parametrize("count", [2, 6, 25])
    def test_labels_of_equal_boxes_do_not_overlap(self, count):
        places = place_labels([(50, 60, 90, 100)] * count, [(60, 12)] * count, SIZE)
        assert overlaps(places) == [] and len(np.unique(places, axis=0)) == count
        assert places[0].tolist() == [50, 48, 110, 60]

    def test_labels_of_random_boxes(self):
        draw = random.Random(0)
        for _ in range(60):
            boxes = []
            for _ in range(draw.randrange(1, 30)):
                x0, y0 = draw.uniform(-5, 390), draw.uniform(-5, 290)
                boxes.append((x0, y0, x0 + draw.uniform(0, 120), y0 + draw.uniform(0, 120)))
            sizes = [(draw.randrange(20, 90), 12) for _ in boxes]
            places = place_labels(boxes, sizes, SIZE)
            assert overlaps(places) == []
            assert places.min() >= 0
            assert places[:, 2].max() <= 400 and places[:, 3].max() <= 300
            assert places[:, 2:] - places[:, :2] == pytest.approx(np.array(sizes))

    def test_an_image_that_is_too_full(self):
        places = place_labels([(0, 0, 20, 20)] * 9, [(30, 15)] * 9, (40, 40))
        assert len(places) == 9 and overlaps(places)


class TestDrawBoxes:
    def test_no_box(self):
        image = Image.new("RGB", (40, 30), "white")
        draw_boxes(image, [], [], [])
        assert np.asarray(image).min() == 255

    def test_every_label_can_be_read(self):
        """Each label's field shows in its color, though all boxes are at one place."""
        image = Image.new("RGB", (400, 300), "white")
        draw_boxes(image, [(100, 80, 160, 140)] * 4, ["one", "two", "", "four"], [0, 1, 2, 3])
        pixels = np.asarray(image).reshape(-1, 3)
        counts = {c: int((pixels == COLORS[c]).all(1).sum()) for c in range(4)}
        assert min(counts[0], counts[1], counts[3]) > 150
        # The box on top hides the others, and one without a text has no label.
        assert counts[2] == 0

    @pytest.mark.parametrize("index", range(len(COLORS)))
    def test_labels_contrast_with_their_field(self, index):
        image = Image.new("RGB", (400, 300), COLORS[index])
        draw_boxes(image, [(100, 80, 160, 140)], ["label"], [index])
        luma = np.asarray(image.convert("L"), int)
        assert np.abs(luma - luma[0, 0]).max() > 100

    @pytest.mark.parametrize("size", [(1, 1), (3, 96), (96, 3), (96, 96), (4000, 3000)])
    @pytest.mark.parametrize("label", ["x", "a label that is wider than the image", "犬 é\n\0"])
    def test_images_of_every_size(self, size, label):
        image = Image.new("RGB", size)
        width, height = size
        boxes = [
            (0, 0, width, height),
            (-5, -5, 2 * width, 2 * height),
            (0.5, 0.5, 0.5, 0.5),
            (width, height, width + 9, height + 9),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            draw_boxes(image, boxes, [label] * 4, range(4))
        assert image.size == size
        assert np.asarray(image).any()

    def test_labels_at_the_upper_edge_are_whole(self):
        """Letters without ascenders are low in their line, whose top is then above the image."""

        def label(top):
            image = Image.new("RGB", (120, 120))
            draw_boxes(image, [(5, top, 60, 115)], ["a green square"], [0])
            return np.asarray(image)[:, :, 1]

        whole = np.argwhere(label(60) > 150)
        assert len(whole) > 50
        for top in (0, 3, 15, 16, 16.4, 16.9, 17, 18):
            letters = np.argwhere(label(top) > 150)
            assert len(letters) == len(whole)
            assert np.ptp(letters, 0).tolist() == np.ptp(whole, 0).tolist()

    @pytest.mark.parametrize("line_width", [1, 3])
    @pytest.mark.parametrize("box", [(10, 6, 30, 20), (10.6, 6.3, 29.2, 19.9)])
    def test_lines_are_around_the_half_open_box(self, box, line_width):
        image = Image.new("RGB", (50, 40))
        draw_boxes(image, [box], [""], [0], line_width)
        is_drawn = np.asarray(image).any(2)
        expected = np.zeros_like(is_drawn)
        expected[6 - line_width : 20 + line_width, 10 - line_width : 30 + line_width] = True
        expected[6:20, 10:30] = False
        np.testing.assert_array_equal(is_drawn, expected)

    @pytest.mark.parametrize(
        ("box", "outer"),
        [
            ((0, 0, 50, 40), (0, 0, 50, 40)),
            ((1, 30, 20, 40), (0, 27, 23, 40)),
            ((-9, -9, 99, 99), (0, 0, 50, 40)),
            ((45, 35, 50, 39.5), (42, 32, 50, 40)),
        ],
    )
    def test_lines_at_the_border_are_inside_the_image(self, box, outer):
        image = Image.new("RGB", (50, 40))
        draw_boxes(image, [box], [""], [0], line_width=3)
        is_drawn = np.asarray(image).any(2)
        x0, y0, x1, y1 = outer
        expected = np.zeros_like(is_drawn)
        expected[y0:y1, x0:x1] = True
        expected[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3] = False
        np.testing.assert_array_equal(is_drawn, expected)


def test_dashed_boxes_show_on_black_and_on_white():
    for ground in ("black", "white"):
        image = Image.new("RGB", (60, 60), ground)
        draw_dashed_box(image, (10, 20, 50, 40))
        pixels = np.asarray(image)[:, :, 0]
        for edge in (pixels[19, 9:51], pixels[40, 9:51], pixels[19:41, 9], pixels[19:41, 50]):
            assert set(edge.tolist()) == {0, 255}
        assert set(np.delete(pixels, [19, 40], 0)[:, 10:50].ravel()) == {pixels[0, 0]}


class TestSheet:
    def test_no_tile(self):
        assert np.asarray(make_sheet([], 4)).min() == 255

    def test_each_row_is_as_high_as_it_must_be(self):
        tiles = [Image.new("RGB", (288, 100 + 50 * i), (i, 0, 0)) for i in range(5)]
        sheet = make_sheet(tiles, 4)
        assert sheet.size == (4 * 288 + 5 * 12, 250 + 300 + 3 * 12)
        assert sheet.getpixel((12, 12)) == (0, 0, 0)
        assert sheet.getpixel((12 + 288 + 12, 12)) == (1, 0, 0)
        assert sheet.getpixel((12, 12 + 250 + 12)) == (4, 0, 0)
        assert sheet.getpixel((400, 12 + 250 + 12)) == (255, 255, 255)
