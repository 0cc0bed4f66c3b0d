"""Labels of boxes: near their boxes, inside the picture, and never one over another."""

import itertools
import random

import numpy as np
import pytest
from PIL import Image

from fiber.data.box_drawing import COLORS, Place, draw_boxes, place_labels

SIZE = (300, 400)


def overlaps(places):
    return [(a, b) for a, b in itertools.combinations(places, 2) if a.shared(b) > 0]


def test_no_box_and_one_box():
    assert place_labels([], [], SIZE) == []
    assert place_labels([(50, 60, 90, 100)], [(30, 10)], SIZE) == [Place(50, 50, 80, 60)]
    # At the upper border it stands inside.
    assert place_labels([(50, 4, 90, 100)], [(30, 10)], SIZE) == [Place(50, 4, 80, 14)]
    # One that is wider than the picture begins at its border.
    assert place_labels([(50, 60, 90, 100)], [(900, 10)], SIZE)[0][:2] == (0, 50)


@pytest.mark.parametrize("count", [2, 6, 25])
def test_labels_of_one_place_do_not_cover_one_another(count):
    places = place_labels([(50, 60, 90, 100)] * count, [(60, 12)] * count, SIZE)
    assert overlaps(places) == [] and len(set(places)) == count
    assert places[0] == Place(50, 48, 110, 60)


def test_labels_of_random_boxes():
    draw = random.Random(0)
    for _ in range(60):
        boxes = []
        for _ in range(draw.randrange(1, 30)):
            x0, y0 = draw.uniform(-5, 390), draw.uniform(-5, 290)
            boxes.append((x0, y0, x0 + draw.uniform(0, 120), y0 + draw.uniform(0, 120)))
        sizes = [(draw.randrange(20, 90), 12) for _ in boxes]
        places = place_labels(boxes, sizes, SIZE)
        assert overlaps(places) == []
        for place, (width, height) in zip(places, sizes, strict=True):
            assert place.x0 >= 0 and place.y0 >= 0 and place.x1 <= 400 and place.y1 <= 300
            assert place.x1 - place.x0 == pytest.approx(width)
            assert place.y1 - place.y0 == pytest.approx(height)


def test_a_picture_that_is_too_full():
    places = place_labels([(0, 0, 20, 20)] * 9, [(30, 15)] * 9, (40, 40))
    assert len(places) == 9 and overlaps(places)


def test_every_label_can_be_read():
    """Each label's field shows in its colour, though all boxes lie in one place."""
    image = Image.new("RGB", (400, 300), "white")
    draw_boxes(image, [(100, 80, 160, 140)] * 4, ["one", "two", "", "four"], [0, 1, 2, 3])
    pixels = np.asarray(image).reshape(-1, 3)
    counts = {c: int((pixels == COLORS[c]).all(1).sum()) for c in range(4)}
    assert min(counts[0], counts[1], counts[3]) > 150
    # The box on top hides the others, and one without a text has no label.
    assert counts[2] == 0


def test_nothing_is_drawn_of_nothing():
    image = Image.new("RGB", (40, 30), "white")
    draw_boxes(image, [], [], [])
    assert np.asarray(image).min() == 255


def test_labels_at_the_upper_edge_are_whole():
    """Letters without ascenders lie low in their line, whose top is then above the picture."""

    def label(top: float) -> np.ndarray:
        image = Image.new("RGB", (120, 120))
        draw_boxes(image, [(5, top, 60, 110)], ["a green square"], [0])
        return np.asarray(image)[:, :, 1]

    whole = np.argwhere(label(60) > 150)
    for top in (16, 16.4, 16.9, 17, 18):
        letters = np.argwhere(label(top) > 150)
        assert len(letters) == len(whole)
        assert np.ptp(letters, 0).tolist() == np.ptp(whole, 0).tolist()
