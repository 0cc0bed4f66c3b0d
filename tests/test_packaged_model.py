"""The model in the package, `fiber.load("scenes")`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import fiber
from fiber.checkpoints.load import load_stored
from fiber.checkpoints.stages import packaged_model
from fiber.cli import main
from fiber.evaluation.evaluate import evaluate
from fiber.synthetic.scenes import generate

FOLDER = packaged_model("scenes")
METRICS = json.loads((FOLDER / "metrics.json").read_text())


@pytest.fixture(scope="module")
def model():
    return fiber.load("scenes", device="cpu")


@pytest.fixture
def drawing() -> Image.Image:
    """A drawing as by hand: flat colors on white, larger than any training picture, not square."""
    picture = Image.new("RGB", (480, 360), "white")
    pen = ImageDraw.Draw(picture)
    pen.ellipse((40, 60, 150, 170), fill="red")
    pen.rectangle((300, 200, 420, 320), fill="blue", outline="black", width=3)
    pen.polygon([(360, 30), (300, 130), (420, 130)], fill="green")
    return picture


BOXES = {
    "circle": (40, 60, 150, 170),
    "square": (300, 200, 420, 320),
    "triangle": (300, 30, 420, 130),
}


def iou(box, other) -> float:
    x0, y0 = np.maximum(box[:2], other[:2])
    x1, y1 = np.minimum(box[2:], other[2:])
    common = max(x1 - x0, 0) * max(y1 - y0, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return common / (sum(areas) - common)


@pytest.mark.parametrize(
    ("phrase", "shape"),
    [
        ("a red circle", "circle"),
        ("the blue object", "square"),
        ("a green triangle", "triangle"),
        ("the square", "square"),
    ],
)
def test_it_finds_what_a_phrase_names_in_a_drawing(model, drawing, phrase, shape):
    found = model.ground(drawing, [phrase])
    assert iou(found.boxes_xyxy[0], BOXES[shape]) > 0.5


def test_its_recorded_metrics_are_those_of_a_new_measurement(tmp_path):
    check = METRICS["check"]
    data = generate(
        tmp_path / "scenes",
        train=0,
        val=check["images"],
        novel=0,
        varied=True,
        tokenizer=FOLDER / "fine" / "tokenizer.json",
    )
    for task, recorded in check["metrics"].items():
        stage = {"refcoco": "fine", "vqa": "coarse"}[task]
        found = evaluate(load_stored(f"scenes/{stage}", device="cpu"), task, data)
        # Other processors round differently, which may turn a few of hundreds of answers.
        assert found["accuracy" if task == "vqa" else "accuracy_at_1"] == pytest.approx(
            recorded["accuracy" if task == "vqa" else "accuracy_at_1"], abs=0.01
        )


def test_its_size_and_card():
    size = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    assert METRICS["bytes"] < size < 6.0e6
    card = (FOLDER / "README.md").read_text()
    for task, splits in METRICS["tasks"].items():
        assert set(splits) == {"val", "novel"}, task
    accuracy = METRICS["tasks"]["refcoco"]["val"]["model"]["accuracy_at_1"]
    assert f"| {accuracy:.3f} |" in card


def test_commands_use_it_when_there_is_no_other_model(drawing, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    drawing.save("drawing.png")
    assert main(["ground", "drawing.png", "--phrases", "a red circle; the square"]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("fiber: using the model in the package, 'scenes'") == 1
    result = json.loads(printed.out)
    assert result["model"] == "scenes"
    for box, shape in zip(result["detections"], ("circle", "square"), strict=True):
        assert box["label"] in ("a red circle", "the square")
        name = "circle" if "circle" in box["label"] else "square"
        assert iou(np.array(box["box_xyxy"]), BOXES[name]) > 0.5, shape
    for arguments in (
        ["answer", "drawing.png", "what color is the circle?"],
        ["caption", "drawing.png"],
        ["match", "drawing.png", "a red circle and a blue square"],
        ["search", "a red circle", "drawing.png"],
        ["detect", "drawing.png", "--classes", "circle; square; triangle"],
    ):
        assert main(arguments) == 0
        assert "using the model in the package" in capsys.readouterr().err


def test_a_model_of_that_name_takes_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("scenes").mkdir()  # such as a data folder
    assert fiber.load("scenes", device="cpu").heads
    load_stored("scenes/fine", device="cpu")
    fiber.load("scenes/fine", device="cpu").save("scenes/fine")
    assert fiber.load("scenes", device="cpu").heads == ("grounding",)
