"""Results in notebooks, and as `supervision.Detections`."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from fiber.postprocess import Detections
from fiber.postprocess.notebook import MAX_SHOWN_SIDE, html_of
from fiber.postprocess.segmentation import LabeledSegment, Segmentation

PICTURE = np.full((60, 80, 3), 200, np.uint8)


def detections(picture, labels=("a red mug", "a cup"), masks=None):
    boxes = np.array([[12.5, 20.0, 40.25, 50.0], [0.0, 0.0, 80.0, 60.0]], np.float32)
    scores = np.array([0.93456, 0.5], np.float32)
    return Detections(boxes, scores, list(labels), np.array([1, 0]), (60, 80), picture, masks)


def segmentation(picture):
    ids = np.zeros((60, 80), np.int32)
    ids[2:10, 3:9], ids[12:] = 1, 2
    segments = (LabeledSegment(1, "dog", 0, True, 0.875), LabeledSegment(2, "sky", 3, False, 0.5))
    return Segmentation("panoptic", ids, segments, None, picture)


def shown(result):
    """The image in the HTML of a result."""
    [encoded] = re.findall(r'src="data:image/png;base64,([^"]+)"', result._repr_html_())
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


@pytest.mark.parametrize("make", [detections, segmentation])
def test_a_notebook_shows_what_draw_returns(make):
    result = make(PICTURE)
    drawn = np.asarray(result.draw())
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(result._repr_png_()))), drawn)
    assert np.array_equal(np.asarray(shown(result)), drawn)


@pytest.mark.parametrize("make", [detections, segmentation])
@pytest.mark.parametrize("picture", [None, "no/such/file.png", np.zeros((5, 5, 3), np.uint8)])
def test_without_its_image_a_table_is_shown(make, picture):
    result = make(picture)
    assert result._repr_png_() is None
    assert "<img" not in result._repr_html_() and "<table>" in result._repr_html_()


def test_rows_have_labels_scores_and_boxes():
    text = detections(None)._repr_html_()
    assert "2 detections in 80 x 60 pixels" in text
    assert "<tr><td>a red mug</td><td>0.935</td><td>12.5, 20.0, 40.2, 50.0</td></tr>" in text
    assert "<tr><td>sky</td><td>0.500</td><td>3,840</td></tr>" in segmentation(None)._repr_html_()


def test_nothing_found_shows_the_image_without_a_table():
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), [], np.zeros(0, np.int64)
    result = Detections(*nothing, (60, 80), PICTURE)
    assert shown(result).size == (560, 420) and "<table>" not in result._repr_html_()


def test_labels_are_escaped():
    hostile = '<script>alert("x")</script>\x1b[2J'
    text = detections(PICTURE, (hostile, '"><b>'))._repr_html_()
    assert "<script" not in text and "<b>" not in text and "\x1b" not in text
    assert "&lt;script&gt;" in text


def test_large_images_and_long_tables_are_cut():
    large = np.zeros((900, 2400, 3), np.uint8)
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), [], np.zeros(0, np.int64)
    assert shown(Detections(*none, (900, 2400), large)).size == (MAX_SHOWN_SIDE, 384)
    text = html_of("title", None, ("label",), [(f"row {i}",) for i in range(1000)])
    assert text.count("<tr>") == 101 and "and 900 more" in text


@pytest.mark.parametrize("masks", [False, True])
def test_supervision_annotates_detections(masks):
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    pixels = np.zeros((2, 60, 80), bool)
    pixels[0, 20:50, 13:40] = True
    found = detections(PICTURE, masks=pixels if masks else None)
    theirs = found.to_supervision()
    assert theirs.xyxy.tolist() == found.boxes_xyxy.tolist()
    assert theirs.confidence.tolist() == found.scores.tolist()
    assert theirs.class_id.tolist() == [1, 0]
    assert theirs["class_name"].tolist() == ["a red mug", "a cup"]
    assert (theirs.mask is None) == (not masks)
    drawn = supervision.BoxAnnotator().annotate(PICTURE.copy(), theirs)
    assert (drawn[20, 13:40] != PICTURE[20, 13:40]).any()


def test_supervision_takes_segments():
    pytest.importorskip("supervision", reason="supervision is not installed")
    theirs = segmentation(PICTURE).to_supervision()
    assert theirs.area.tolist() == [48, 3840]
    assert theirs.xyxy.tolist() == [[3, 2, 9, 10], [0, 12, 80, 60]]


def test_supervision_takes_an_image_without_detections():
    pytest.importorskip("supervision", reason="supervision is not installed")
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), [], np.zeros(0, np.int64)
    assert len(Detections(*none, (60, 80)).to_supervision()) == 0
