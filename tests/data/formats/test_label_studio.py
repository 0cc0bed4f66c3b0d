"""Exports of Label Studio: which tasks are read, and what is wrong with a result."""

import json

import pytest
from PIL import Image

from fiber.data.datasets.resolve import open_source
from fiber.data.tools.discover import parts_of

BOX = {"x": 25, "y": 50, "width": 50, "height": 25, "rotation": 0, "rectanglelabels": ["cup"]}


def task(value=BOX, kind="rectanglelabels", image="1.png", **other):
    result = {"type": kind, "value": value, **other}
    return {"data": {"image": image}, "annotations": [{"result": [result]}]}


@pytest.fixture
def export(tmp_path):
    """A folder with two images, and a function that writes an export beside them."""
    for name in ("1.png", "images/2.png", "images/a b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 80)).save(tmp_path / name)

    def write(*tasks):
        (tmp_path / "export.json").write_text(json.dumps(tasks))
        return tmp_path / "export.json"

    return write


@pytest.mark.parametrize(
    "image",
    [
        "images/a b.png",
        "/data/upload/3/0123abcd-a b.png",
        "/data/local-files/?d=images/a%20b.png",
        "https://example.com/pictures/a%20b.png",
        "C:\\pictures\\a b.png",
    ],
)
def test_images_by_the_names_of_their_tasks(image, export):
    other = {"data": {"image": "2.png"}, "annotations": [], "predictions": [{"result": []}]}
    path = export(task(image=image), other, task(image="images/2.png"))
    records = open_source("detection", path.parent, "train+val")
    assert {record.images[0].rpartition("/")[2] for record in records} == {"a b.png", "2.png"}
    assert records[0].boxes_xyxy == ((10, 40, 30, 60),) and records[0].labels == ("cup",)
    for data in (path, path.parent):
        assert [each[:2] for each in parts_of(data)] == [
            ("detection", "train"),
            ("detection", "val"),
        ]
    parts = records.parts
    assert parts[0].counts == {"tasks without annotations": 1}


RESULTS = {
    "oriented": (task(BOX | {"rotation": 30}), "turned by 30 degrees"),
    "turned": (task(image_rotation=90), "turned by 90 degrees"),
    "polygon": (task({"points": []}, "polygonlabels"), "is a polygon"),
    "mask": (task({"rle": []}, "brushlabels"), "is a mask"),
    "pixels": (task(BOX | {"x": 250}), "expected percent"),
    "text": (task(BOX | {"x": "1"}), "expected percent"),
    "two": (task(BOX | {"rectanglelabels": ["cup", "mug"]}), "a list of one name"),
    "none": (task(BOX | {"rectanglelabels": None}), "a list of one name"),
    "wordless": (task(BOX | {"rectanglelabels": [" "]}), "a name with words"),
    "no value": (task(None), "has 'value' None"),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_a_wrong_result_is_named(kind, export):
    wrong, said = RESULTS[kind]
    path = export(task(image="2.png"), wrong)
    with pytest.raises(ValueError, match=rf"export\.json: entries\[1\] has result 0 .*{said}"):
        open_source("detection", path, "train")
    records = open_source("detection", path, "train+val", on_error="skip")
    assert sum(len(record.boxes_xyxy) for record in records) == 1


TASKS = {
    "gone": (task(image="gone.png"), FileNotFoundError, r"no image 'gone\.png'; tried .*images"),
    "no image": (task(image="text"), ValueError, "expected the name of an image"),
    "size": (task(original_width=1.5, original_height=3), ValueError, "original_width 1.5"),
    "result": (
        {"data": {"image": "1.png"}, "annotations": [{"result": 3}]},
        ValueError,
        "'result' 3",
    ),
    "annotations": ({"data": {"image": "1.png"}, "annotations": 3}, ValueError, "'annotations' 3"),
    "predictions": (
        {"data": {"image": "1.png"}, "predictions": [{"result": []}]},
        ValueError,
        "no annotated task",
    ),
}


@pytest.mark.parametrize("kind", TASKS)
def test_a_wrong_task_is_named(kind, export):
    wrong, error, said = TASKS[kind]
    with pytest.raises(error, match=rf"export\.json.*{said}"):
        open_source("detection", export(wrong), "train")


def test_other_results_are_counted(export):
    odd = task({"choices": ["good"]}, "choices", image="2.png")
    odd["annotations"][0]["result"].append({"type": ["choices"]})
    path = export(task(), odd)
    counts = {}
    for split in ("train", "val"):
        counts |= open_source("detection", path, split).counts
    assert counts == {"results that mark no region": 2}


def test_two_formats_in_one_folder_are_named(export):
    path = export(task(image="1.png"), task(image="2.png"))
    objects = {"bbox": [[1, 2, 9, 9]], "categories": ["cup"]}
    line = json.dumps({"file_name": "1.png", "objects": objects})
    (path.parent / "metadata.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"several layouts.*: export\.json, metadata\.jsonl"):
        open_source("detection", path.parent, "train")
    # Each is read by its name.
    assert len(open_source("detection", path, "train+val")) == 2
    assert len(open_source("detection", path.parent / "metadata.jsonl", "train")) == 1
