import json

import numpy as np
import pytest
import torch
from PIL import Image

from fiber.postprocess import Detections, FoundBoxes

pytestmark = pytest.mark.oldest

PICTURE = np.full((60, 80, 3), 200, np.uint8)


def found(boxes, scores, labels):
    return FoundBoxes(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
    )


def detections(picture=PICTURE):
    boxes = [[12.5, 20.0, 40.25, 50.0], [0.0, 0.0, 80.0, 60.0]]
    return Detections.from_found(
        found(boxes, [0.93456, 0.5], [1, 0]), ["a cup", "a red mug"], (60, 80), picture
    )


def test_nothing_found():
    nothing = Detections.from_found(found([], [], []), ["mug"], (60, 80), PICTURE)
    assert len(nothing) == 0
    assert repr(nothing) == "Detections(0 in 80 x 60 pixels)"
    assert nothing.to_dict()["detections"] == []
    assert nothing.draw().size == (560, 420)


def test_fields_and_repr():
    each = detections()
    assert each.labels == ["a red mug", "a cup"]
    assert each.indices.tolist() == [1, 0]
    assert each.boxes_xyxy.dtype == np.float32
    assert each.image_size == (60, 80)
    assert repr(each).splitlines() == [
        "Detections(2 in 80 x 60 pixels)",
        "  0.935  [12.5, 20.0, 40.2, 50.0]  a red mug",
        "  0.500  [0.0, 0.0, 80.0, 60.0]  a cup",
    ]
    label = "\x1b[2J" + "x" * 1000
    hostile = Detections.from_found(found([[0, 0, 1, 1]], [0.5], [0]), [label], (60, 80))
    assert "\x1b" not in repr(hostile) and "\\x1b[2Jxxx" in repr(hostile)
    assert len(repr(hostile)) < 400 and hostile.labels == [label]


def test_json_object():
    text = json.dumps(detections("photo.jpg").to_dict(model="runs/demo/fine"))
    assert json.loads(text) == {
        "image": "photo.jpg",
        "width": 80,
        "height": 60,
        "model": "runs/demo/fine",
        "detections": [
            {
                "box_xyxy": [12.5, 20.0, 40.25, 50.0],
                "score": 0.9346,
                "label": "a red mug",
                "index": 1,
            },
            {"box_xyxy": [0.0, 0.0, 80.0, 60.0], "score": 0.5, "label": "a cup", "index": 0},
        ],
    }
    assert detections().to_dict()["image"] is None
    assert detections("photo.jpg").to_dict(image="other")["image"] == "other"


def test_saved_picture_shows_the_boxes(tmp_path):
    detections().save(tmp_path / "annotated.png")
    pixels = np.asarray(Image.open(tmp_path / "annotated.png").convert("RGB")).astype(int)
    # Enlarged 7 times; the left side of the first box runs in its label's colour, next to the box.
    assert pixels.shape == (420, 560, 3)
    column = pixels[250:345, 86]
    assert (column == column[0]).all()
    assert (column[0] != 200).any()
    assert (pixels[250:345, 87] == 200).all()
    # The middle of the first box stays as it was.
    assert (pixels[300, 180] == 200).all()


@pytest.mark.parametrize("kind", ["path", "bytes", "array"])
def test_a_picture_may_be_a_path_bytes_or_an_array(tmp_path, kind):
    Image.fromarray(PICTURE).save(tmp_path / "p.png")
    picture = {
        "path": tmp_path / "p.png",
        "bytes": (tmp_path / "p.png").read_bytes(),
        "array": PICTURE,
    }[kind]
    assert np.array_equal(np.asarray(detections(picture).draw()), np.asarray(detections().draw()))


def test_a_large_picture_keeps_its_size():
    each = Detections.from_found(
        found([[1, 2, 3, 4]], [0.5], [0]), ["x"], (400, 900), np.zeros((400, 900, 3), np.uint8)
    )
    assert each.draw().size == (900, 400)


@pytest.mark.parametrize(("size", "drawn"), [((1, 4000), (4000, 1)), ((3, 1000), (4000, 12))])
def test_a_strip_is_not_enlarged_beyond_measure(size, drawn, tmp_path):
    each = Detections.from_found(
        found([[0, 0, 500, 1]], [0.5], [0]), ["x"], size, np.zeros((*size, 3), np.uint8)
    )
    assert each.draw().size == drawn
    each.save(tmp_path / "strip.png")
    assert Image.open(tmp_path / "strip.png").size == drawn


def test_boxes_and_labels_at_the_border_are_drawn():
    boxes = [[0, 0, 1, 1], [79, 59, 80, 60], [79, 0, 80, 60], [0, 30, 80, 30]]
    label = "a label that is much wider than the whole picture is, and then some more words"
    each = Detections.from_found(found(boxes, [0.5] * 4, [0] * 4), [label], (60, 80), PICTURE)
    assert each.draw().size == (560, 420)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="no image to draw on"):
        detections(None).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x: unknown suffix ''; expected \.png, \.jpg"):
        detections().save(str(tmp_path / "x"))
    with pytest.raises(ValueError, match="has 5 x 7 pixels; expected 80 x 60"):
        detections(np.zeros((7, 5, 3), np.uint8)).draw()
    with pytest.raises(ValueError, match=r"1 labels, boxes_xyxy \(2, 4\) and 1 scores"):
        Detections(
            boxes_xyxy=np.zeros((2, 4), np.float32),
            scores=np.zeros(1, np.float32),
            labels=["x"],
            indices=np.zeros(1, np.int64),
            image_size=(60, 80),
        )
    assert not list(tmp_path.iterdir())


def test_sixteen_bits_are_drawn_as_they_are_read(tmp_path):
    values = np.full((60, 80), 0x4000, np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    drawn = np.asarray(
        Detections.from_found(found([], [], []), [], (60, 80), tmp_path / "deep.png").draw()
    )
    assert (drawn == 0x40).all()
