"""supervision reads what is written, and what it writes is read."""

import numpy as np
import pytest

from fiber.data import convert, open_source

from .test_convert import write_coco

supervision = pytest.importorskip("supervision", reason="supervision is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")


def loaded(folder, to):
    """Read the split "train" of a folder by supervision."""
    kind = supervision.DetectionDataset
    if to == "coco":
        return kind.from_coco(f"{folder}/train", f"{folder}/annotations/instances_train.json")
    if to == "yolo":
        places = (f"{folder}/images/train", f"{folder}/labels/train")
        return kind.from_yolo(*places, f"{folder}/data.yaml")
    return kind.from_pascal_voc(f"{folder}/JPEGImages", f"{folder}/Annotations")


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
def test_what_is_written_is_read(to, tmp_path):
    coco = write_coco(tmp_path / "coco")
    convert(coco, tmp_path / "other", to, splits=["train"])
    dataset = loaded(tmp_path / "other", to)
    records = {
        record.images[0]: record
        for record in open_source("detection", tmp_path / "other", "train+val")
    }
    assert len(dataset) == len(records) == 4
    for path, _, boxes in dataset:
        record = records[str(path)]
        assert [dataset.classes[n] for n in boxes.class_id] == [
            record.labels[n] for n in record.box_labels
        ]
        # supervision takes boxes of VOC for half-open after it subtracts 1.
        slack = 1.5 if to == "voc" else 0.6
        assert np.allclose(boxes.xyxy, np.array(record.boxes_xyxy).reshape(-1, 4), atol=slack)


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
def test_what_supervision_writes_is_read(to, tmp_path):
    coco = write_coco(tmp_path / "coco", ["train"])
    convert(coco, tmp_path / "yolo", "yolo")
    dataset = loaded(tmp_path / "yolo", "yolo")
    out = tmp_path / "out"
    if to == "coco":
        dataset.as_coco(f"{out}/images", f"{out}/annotations.json")
    elif to == "yolo":
        dataset.as_yolo(f"{out}/images", f"{out}/labels", f"{out}/data.yaml")
    else:
        dataset.as_pascal_voc(f"{out}/images", f"{out}/annotations")
    own = {
        record.images[0].rpartition("/")[2]: record
        for record in open_source("detection", out, "train+val")
    }
    wanted = open_source("detection", tmp_path / "yolo", "train+val")
    assert len(own) == len(wanted) == 4
    for record in wanted:
        other = own[record.images[0].rpartition("/")[2]]
        assert [other.labels[n] for n in other.box_labels] == [
            record.labels[n] for n in record.box_labels
        ]
        for box, another in zip(other.boxes_xyxy, record.boxes_xyxy, strict=True):
            assert box == pytest.approx(another, abs=1.5 if to == "voc" else 0.5)
