"""`Segmentation`: masks, boxes, drawings and files."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco
from PIL import Image

from fiber.postprocess.segmentation import LabeledSegment, Segmentation, paint
from fiber.visualize import COLORS

pytestmark = pytest.mark.oldest


def example(picture=None, overlapping=False):
    ids = np.zeros((20, 30), np.int32)
    ids[2:10, 3:9] = 1
    ids[12:, :] = 2
    segments = (
        LabeledSegment(1, "dog", 0, True, 0.875),
        LabeledSegment(2, "grass", 3, False, 0.5),
        LabeledSegment(3, "cat", 1, True, 0.25),
    )
    masks = None
    if overlapping:
        masks = np.stack([ids == 1, ids == 2, (ids == 1) | (ids == 2)])
    return Segmentation("panoptic", ids, segments, masks, picture)


def test_nothing():
    empty = Segmentation("panoptic", np.zeros((4, 5), np.int32), ())
    assert len(empty) == 0 and empty.masks.shape == (0, 4, 5)
    assert empty.boxes_xyxy.shape == (0, 4) and empty.labels == []
    assert empty.to_dict()["segments"] == []
    assert repr(empty) == "Segmentation(panoptic, 0 in 5 x 4 pixels)"


def test_arrays():
    found = example()
    assert found.image_size == (20, 30) and found.labels == ["dog", "grass", "cat"]
    assert found.scores.tolist() == [0.875, 0.5, 0.25] and found.indices.tolist() == [0, 3, 1]
    assert found.boxes_xyxy.tolist() == [[3, 2, 9, 10], [0, 12, 30, 20], [0, 0, 0, 0]]
    assert [mask.sum() for mask in found.masks] == [48, 240, 0]
    both = example(overlapping=True)
    assert both.boxes_xyxy[2].tolist() == [0, 2, 30, 20] and both.masks[2].sum() == 288


def test_dict():
    result = example().to_dict(image="a.jpg", model="m")
    assert (result["image"], result["width"], result["height"]) == ("a.jpg", 30, 20)
    dog, _, cat = result["segments"]
    assert dog["box_xyxy"] == [3, 2, 9, 10] and dog["area"] == 48 and dog["score"] == 0.875
    assert np.array_equal(coco.decode(dog["segmentation"]).astype(bool), example().masks[0])
    assert cat["area"] == 0 and not coco.decode(cat["segmentation"]).any()


def test_drawing_colors_the_masks():
    picture = np.full((20, 30, 3), 255, np.uint8)
    drawn = np.asarray(example(picture).draw())
    scale = drawn.shape[0] // 20
    assert drawn.shape == (20 * scale, 30 * scale, 3) and min(drawn.shape[:2]) >= 384
    # Without a mask, the pixels stay.
    assert (drawn[int(10.5 * scale), int(20.5 * scale)] == 255).all()
    # Inside, they are between the color of the mask and the image; at the edge, of the color.
    inside = drawn[int(15.5 * scale), int(2.5 * scale)].astype(int)
    assert (inside >= np.array(COLORS[3])).all() and (inside < 255).any()
    assert drawn[2 * scale, 8 * scale].tolist() == list(COLORS[0])


def test_saving(tmp_path):
    picture = np.zeros((20, 30, 3), np.uint8)
    example(picture, overlapping=True).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width / image.height == 1.5
    with pytest.raises(ValueError, match=r"Segmentation: no image"):
        example().save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"9 x 9 pixels; expected 30 x 20, .*masks"):
        example(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"unknown suffix '\.xyz'"):
        example(picture).save(tmp_path / "b.xyz")


@pytest.mark.parametrize(
    ("ids", "masks", "message"),
    [
        (np.zeros(4, np.int32), None, r"ids has shape \(4,\)"),
        (np.full((2, 2), 7, np.int32), None, r"ids has \[7\], which are of no segment"),
        (np.zeros((2, 2), np.int32), np.zeros((2, 2, 2), bool), r"expected \(1, 2, 2\)"),
    ],
)
def test_fields_that_do_not_fit(ids, masks, message):
    segments = (LabeledSegment(1, "dog", 0, True, 0.5),)
    with pytest.raises(ValueError, match=message):
        Segmentation("instance", ids, segments, masks)


def test_the_first_mask_has_a_pixel_of_several():
    masks = np.zeros((2, 2, 2), bool)
    masks[0, 0] = masks[1, :, 0] = True
    assert paint(masks, [5, 6]).tolist() == [[5, 5], [6, 0]]


def test_supervision(monkeypatch):
    made = {}
    stub = SimpleNamespace(Detections=lambda **fields: made.update(fields) or "detections")
    monkeypatch.setitem(sys.modules, "supervision", stub)
    assert example(overlapping=True).to_supervision() == "detections"
    assert made["mask"].dtype == bool and made["mask"].shape == (3, 20, 30)
    assert made["class_id"].tolist() == [0, 3, 1] and made["xyxy"].shape == (3, 4)
    assert made["data"]["class_name"].tolist() == ["dog", "grass", "cat"]
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match="pip install supervision"):
        example().to_supervision()


def test_unknown_attributes_name_similar_ones():
    with pytest.raises(AttributeError, match=r"'boxes'; .*boxes_xyxy"):
        example().boxes  # noqa: B018
