"""`fiber detect --format` and `fiber data convert`: what other tools read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import fiber
from fiber.cli import main
from fiber.data import open_source

from .output import error_line

CLASSES = ["circle", "square"]


@pytest.fixture
def command(tmp_path, monkeypatch, micro_models, scene_picture):
    """A folder with two images of one name, and the beginning of a command."""
    monkeypatch.chdir(tmp_path)
    for name in ("images/a.jpg", "images/more/a.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(scene_picture, name)
    model = ["--model", str(micro_models["fine"]), "--classes", "; ".join(CLASSES)]
    return ["detect", "images", *model, "--threshold", "0", "--max-detections", "3"]


@pytest.fixture
def expected(command, micro_models):
    model = fiber.load(micro_models["fine"])
    paths = ["images/a.jpg", "images/more/a.jpg"]
    return model.detect(paths, CLASSES, score_threshold=0, max_detections=3)


def test_one_json_value_for_all_images(command, expected, capsys):
    assert main([*command, "--format", "coco"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in printed["categories"]] == CLASSES
    names = {each["id"]: each["file_name"] for each in printed["images"]}
    assert list(names.values()) == ["images/a.jpg", "images/more/a.jpg"]
    for found, number in zip(expected, names, strict=True):
        own = [each for each in printed["annotations"] if each["image_id"] == number]
        assert [each["category_id"] - 1 for each in own] == found.indices.tolist()
        assert np.allclose([each["score"] for each in own], found.scores)
        boxes = np.array([each["bbox"] for each in own])
        boxes[:, 2:] += boxes[:, :2]
        assert np.allclose(boxes, found.boxes_xyxy, atol=0.01)
    assert main([*command, "--format", "coco", "--output", "new/boxes.json"]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads(Path("new/boxes.json").read_text()) == printed


def test_predictions_of_label_studio(command, expected, capsys):
    assert main([*command, "--format", "labelstudio"]) == 0
    tasks = json.loads(capsys.readouterr().out)
    assert [task["data"] for task in tasks] == [
        {"image": "images/a.jpg"},
        {"image": "images/more/a.jpg"},
    ]
    for task, found in zip(tasks, expected, strict=True):
        (prediction,) = task["predictions"]
        assert prediction["score"] == pytest.approx(found.scores.max())
        results = prediction["result"]
        assert [each["value"]["rectanglelabels"] for each in results] == [[n] for n in found.labels]
        width = [each["value"]["width"] * each["original_width"] / 100 for each in results]
        sides = found.boxes_xyxy[:, 2] - found.boxes_xyxy[:, 0]
        assert np.allclose(width, sides, atol=0.01)


def test_label_files_are_a_dataset_beside_their_images(command, expected, capsys):
    assert main([*command, "--format", "yolo", "--output", "out"]) == 0
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in Path("out/labels").iterdir()) == ["a-2.txt", "a.txt"]
    Path("out/images").mkdir()
    for path, name in (("images/a.jpg", "a.jpg"), ("images/more/a.jpg", "a-2.jpg")):
        shutil.copy(path, Path("out/images") / name)
    records = open_source("detection", "out", "train+val")
    assert records.parts[0].classes == tuple(CLASSES)
    for record in records:
        for box, other in zip(record.boxes_xyxy, expected[0].boxes_xyxy, strict=True):
            assert box == pytest.approx(other.tolist(), abs=0.01)


def test_json_is_that_of_the_option(command, capsys):
    assert main([*command, "--format", "json"]) == 0
    printed = capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert printed == capsys.readouterr().out != ""


def test_bad_formats_are_named(command, capsys):
    Path("full").mkdir()
    Path("full/x").touch()
    for more, said in (
        (["--format", "yolo"], "pass a new folder as --output DIR"),
        (["--format", "yolo", "--output", "full"], "not an empty folder"),
        (["--output", "x.json"], "--output needs --format coco"),
        (["--format", "json", "--output", "x.json"], "--output needs --format coco"),
        (["--format", "coco", "--output", "full"], "full"),
    ):
        assert main([*command, *more]) in (1, 2)
        assert said in error_line(capsys)


def test_convert_prints_what_was_written(tmp_path, monkeypatch, small_scenes, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "convert", str(small_scenes), "out", "--to", "yolo"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "out\n"
    assert "images: train 30, novel 12, val 12" in printed.err
    assert main(["data", "inspect", "out", "--split", "train+val", "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert {(part["source"], part["split"], part["records"]) for part in parts} == {
        ("detection", "train", 30),
        ("detection", "val", 12),
    }
    assert main(["data", "convert", str(small_scenes), "out", "--to", "voc"]) in (1, 2)
    assert "not an empty folder" in error_line(capsys)
