"""Boxes in other formats and back."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fiber.data import convert
from fiber.data.datasets.resolve import open_source
from fiber.data.image import load_image
from fiber.data.skip_report import classes_of
from fiber.data.writers.convert import FORMATS

#: One of the classes has no box, one is not written as it stands in YAML, XML or JSON.
CLASSES = ["zebra & <co>", "yes", "über", "never"]
BOXES = {
    "train": {
        "a/1.png": [((3.25, 4.5, 40.75, 41.125), 0), ((0, 0, 97, 61), 1)],
        "b/1.png": [((90.4, 50.2, 97, 61), 2)],
        "b/2 two.jpg": [],
        "b/2 two.png": [((1, 2, 3.5, 4.6), 1)],
    },
    "val": {"a/1.png": [((10, 20, 30, 40), 2)], "c.png": [((0.5, 0.5, 20.5, 30.5), 0)]},
}
SIZES = {".png": (97, 61), ".jpg": (60, 97)}


def write_coco(root: Path, splits=("train", "val"), folder="images") -> Path:
    (root / "annotations").mkdir(parents=True)
    for split in splits:
        number, content = 0, {"images": [], "annotations": []}
        for image, (name, own) in enumerate(BOXES[split].items()):
            width, height = SIZES[Path(name).suffix]
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (width, height), (20 * image, 90 * len(split), 7)).save(path)
            about = {"id": image, "file_name": name, "width": width, "height": height}
            content["images"].append(about)
            for (x0, y0, x1, y1), label in own:
                number += 1
                box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": 7 * label}
                content["annotations"].append({"id": number, "image_id": image, **box})
        content["categories"] = [{"id": 7 * n, "name": name} for n, name in enumerate(CLASSES)]
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


def found(folder: Path, split: str) -> dict:
    """Return the boxes with their classes by the pixels of their image."""
    out = {}
    for record in open_source("detection", folder, split):
        pixels = load_image(record.images[0])
        assert record.image_size in (None, pixels.shape[:2])
        labels = [record.labels[label] for label in record.box_labels]
        out[pixels.tobytes()] = list(zip(record.boxes_xyxy, labels, strict=True))
    return out


def assert_same(folder: Path, other: Path, splits=("train", "val")) -> None:
    for split in splits:
        own, wanted = found(folder, split), found(other, split)
        assert own.keys() == wanted.keys()
        for key, boxes in wanted.items():
            assert [label for _, label in own[key]] == [label for _, label in boxes]
            for (box, _), (expected, _) in zip(own[key], boxes, strict=True):
                assert box == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("to", FORMATS)
def test_to_another_format_and_back(to, tmp_path):
    coco = write_coco(tmp_path / "coco")
    made = convert(coco, tmp_path / "other", to)
    assert (made.images, made.boxes) == ({"train": 4, "val": 2}, 6)
    assert list(made.classes) == CLASSES and made.notes == []
    assert_same(tmp_path / "other", coco)
    assert list(classes_of(open_source("detection", tmp_path / "other", "train"))) == CLASSES
    back = convert(tmp_path / "other", tmp_path / "back", "coco")
    assert (list(back.classes), back.images) == (CLASSES, made.images)
    assert_same(tmp_path / "back", coco)
    # The same input gives the same files.
    convert(coco, tmp_path / "again" / "other", to)
    for path in (tmp_path / "other").rglob("*"):
        again = tmp_path / "again" / path.relative_to(tmp_path)
        assert path.is_dir() or path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("to", FORMATS)
def test_without_a_validation_split_the_same_images_are_held_out(to, tmp_path):
    coco = write_coco(tmp_path / "coco", ["train"])
    made = convert(coco, tmp_path / "other", to)
    assert made.images == {"train": 4} and not any("held out" in note for note in made.notes)
    both = [open_source("detection", tmp_path / "other", split) for split in ("train", "val")]
    assert [len(records) for records in both] == [3, 1]
    assert "held out as" in both[0].notes[0]


def test_images_in_memory_are_written(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    files = []
    for number, kind in enumerate(["PNG", "JPEG"]):
        files.append(io.BytesIO())
        Image.new("RGB", (40, 30 + number)).save(files[-1], kind)
    objects = {"bbox": [[1.0, 2.0, 20.0, 20.0]], "category": ["cup"]}
    columns = {"image": [file.getvalue() for file in files], "objects": [objects] * 2}
    parquet.write_table(arrow.table(columns), tmp_path / "mine.parquet")
    convert(tmp_path / "mine.parquet", tmp_path / "voc", "voc")
    names = sorted(path.name for path in (tmp_path / "voc" / "JPEGImages").iterdir())
    assert names == ["0.png", "1.jpg"]
    assert [record.image_size for record in open_source("detection", tmp_path / "voc", "train+val")]


def test_turned_images_are_counted(tmp_path):
    coco = write_coco(tmp_path / "coco")
    turned = Image.Exif()
    turned[274] = 6
    Image.new("RGB", (60, 97)).save(coco / "train" / "b/2 two.jpg", exif=turned)
    for to in FORMATS:
        notes = convert(coco, tmp_path / "made" / to, to).notes
        said = [note for note in notes if "1 image, such as '2 two" in note and "EXIF" in note]
        assert len(said) == (to in ("yolo", "imagefolder", "labelstudio"))


def test_bad_input_is_named(tmp_path):
    coco = write_coco(tmp_path / "coco")
    with pytest.raises(ValueError, match="unknown format 'tfrecord'; expected one of coco, yolo"):
        convert(coco, tmp_path / "out", "tfrecord")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        convert(coco, tmp_path, "yolo")
    (tmp_path / "texts.jsonl").write_text('{"image": "a.png", "text": "a cup"}\n')
    with pytest.raises(ValueError, match=r"texts\.jsonl has no boxes .* but captions"):
        convert(tmp_path / "texts.jsonl", tmp_path / "out", "yolo")
    (coco / "val" / "c.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"c\.png"):
        convert(coco, tmp_path / "out", "yolo")
    assert not (tmp_path / "out").exists()
    path = coco / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [0, 0, 500, 5]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="beyond its image"):
        convert(coco, tmp_path / "out", "yolo", splits=["train"])
    made = convert(coco, tmp_path / "out", "yolo", splits=["train"], on_error="skip")
    assert made.notes == ["1 clipped box was skipped or changed"]
    assert np.loadtxt(tmp_path / "out/labels/train/1.txt").shape == (2, 5)
