"""One small data set in nine forms: `fiber train small_detection` gives the same losses."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import fiber
from fiber.cli import main
from fiber.data import convert, open_source

pytestmark = pytest.mark.oldest

CLASSES = ["circle", "square"]
NUM_IMAGES, WIDTH, HEIGHT = 30, 96, 80
#: A run that is as short as can be, and still has a step after an update.
SHORT = {
    "train.steps": 2,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "data.batch_size": 4,
    "data.transform.shorter_sides": (64,),
    "model.detector.shorter_side": 64,
}


def images() -> dict[str, tuple[Image.Image, list[list[int]], list[int]]]:
    """Return images by name, each with boxes (x, y, width, height) and their classes."""
    found = {}
    for number in range(NUM_IMAGES):
        image = Image.new("RGB", (WIDTH, HEIGHT), (230, 225, 220))
        boxes, labels = [], []
        for part in range(number % 3):
            x, y, side = 5 + 40 * part, 4 + number, 25 + number % 5
            draw = ImageDraw.Draw(image)
            label = (number + part) % 2
            shape = (draw.ellipse, draw.rectangle)[label]
            shape((x, y, x + side, y + side), fill=(200, 40 * part, 7 * number))
            boxes.append([x, y, side, side])
            labels.append(label)
        found[f"{number:02}.png"] = image, boxes, labels
    return found


def coco(folder: Path) -> Path:
    """Write the images, and their boxes in COCO format."""
    (folder / "images").mkdir(parents=True)
    entries, boxes = [], []
    for number, (name, (image, own, labels)) in enumerate(images().items()):
        image.save(folder / "images" / name)
        about = {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
        entries.append(about)
        for box, label in zip(own, labels, strict=True):
            about = {"id": len(boxes), "image_id": number, "category_id": label}
            boxes.append({**about, "bbox": box})
    categories = [{"id": n, "name": name} for n, name in enumerate(CLASSES)]
    content = {"images": entries, "annotations": boxes, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def rows(folder: Path) -> list[dict]:
    """Return rows with the images of a folder."""
    return [
        {
            "image": str(folder / "images" / name),
            "image_id": name,
            "objects": {"bbox": boxes, "category": [CLASSES[label] for label in labels]},
            "width": WIDTH,
            "height": HEIGHT,
        }
        for name, (_, boxes, labels) in images().items()
    ]


def lines(folder: Path) -> Path:
    """Write boxes as JSON lines, next to the images."""
    coco(folder)
    (folder / "annotations.json").unlink()
    text = ""
    for row in rows(folder):
        box = [[x, y, x + w, y + h] for x, y, w, h in row["objects"]["bbox"]]
        entry = {"image": row["image_id"], "boxes_xyxy": box, "labels": row["objects"]["category"]}
        text += json.dumps(entry) + "\n"
    (folder / "train.jsonl").write_text(text)
    return folder


def parquet(folder: Path) -> Path:
    """Write a table with the bytes of the images."""
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    files = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

    found = rows(coco(folder / "from"))
    for row in found:
        row["image"] = {"bytes": Path(row["image"]).read_bytes(), "path": None}
    (folder / "table").mkdir()
    files.write_table(arrow.Table.from_pylist(found), folder / "table/train.parquet")
    return folder / "table"


def converted(to: str):
    def make(folder: Path) -> Path:
        convert(coco(folder / "from"), folder / "made", to)
        return folder / "made"

    return make


FORMS = {
    "one file of COCO": coco,
    "COCO": converted("coco"),
    "YOLO": converted("yolo"),
    "Pascal VOC": converted("voc"),
    "image folder": converted("imagefolder"),
    "Label Studio": converted("labelstudio"),
    "JSON lines": lines,
    "Parquet": parquet,
    "rows in memory": lambda folder: rows(coco(folder)),
}


def trained(data, output: Path) -> list[dict[str, float]]:
    """Train, and return the losses of each step, with the metrics on "val"."""
    if isinstance(data, list):
        fiber.train("small_detection", data=data, output=output, set=SHORT, quiet=True)
    else:
        command = ["train", "small_detection", "--data", str(data), "--output", str(output)]
        for name, value in SHORT.items():
            command += ["--set", f"{name}={value[0] if isinstance(value, tuple) else value}"]
        assert main(command) == 0
    entries = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [entry["losses"] | entry.get("validation", {}) for entry in entries]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The losses with one file in COCO format."""
    folder = tmp_path_factory.mktemp("coco")
    return trained(coco(folder / "data"), folder / "run")


@pytest.mark.parametrize("form", FORMS)
def test_the_same_records_in_every_form(form, tmp_path):
    """The short case: images, boxes, classes and what is held out are the same, in one order."""
    wanted, data = coco(tmp_path / "coco"), FORMS[form](tmp_path / "other")
    if isinstance(data, list):
        data = {"train": data}
    for split in ("train", "val"):
        records, others = (open_source("detection", each, split) for each in (data, wanted))
        assert len(records) == {"train": 24, "val": 6}[split]
        for record, other in zip(records, others, strict=True):
            assert Path(record.image_id).name == Path(other.image_id).name
            for box, another in zip(record.boxes_xyxy, other.boxes_xyxy, strict=True):
                assert box == pytest.approx(another, abs=1e-3)
            assert (record.labels, record.box_labels) == (other.labels, other.box_labels)


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMS if form != "one file of COCO"])
def test_the_same_losses_in_every_form(form, expected, tmp_path, capsys):
    found = trained(FORMS[form](tmp_path / "data"), tmp_path / "run")
    if form != "rows in memory":
        assert re.search(r" 6 of (its )?30 .*held out", capsys.readouterr().err)
    assert len(found) == len(expected) == SHORT["train.steps"] and "score" in found[-1]
    for entry, other in zip(found, expected, strict=True):
        assert entry == pytest.approx(other, rel=1e-4)
