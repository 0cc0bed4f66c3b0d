"""The model in the package, `fiber.load("scenes")`."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import fiber
from fiber.checkpoints.load import load_stored, read_init
from fiber.checkpoints.stages import PackagedModelWarning, packaged_model
from fiber.cli import main
from fiber.evaluation.evaluate import evaluate
from fiber.inference.load import KNOWN_LIMITS
from tests.benches.conftest import load_bench

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


@pytest.fixture(scope="module")
def bench():
    return load_bench("package_scenes")


@pytest.mark.slow
def test_its_recorded_metrics_are_those_of_a_new_measurement(bench, tmp_path):
    check = METRICS["check"]
    assert set(check["metrics"]) == set(bench.CHECKED)
    data = bench.evaluation_data(FOLDER, tmp_path / "scenes", train=0, val=check["images"], novel=0)
    for task, recorded in check["metrics"].items():
        _, stage, metric, _ = bench.TASKS[task]
        stored = load_stored(f"scenes/{stage}", device="cpu")
        found = evaluate(stored, task, data, rerank=False)
        # Other processors round differently, which may turn a few of hundreds of answers.
        assert found[metric] == pytest.approx(recorded[metric], abs=0.01), task
        # The card is about ten times as many pictures, the first of which are these. Only retrieval
        # is easier among fewer.
        if task != "retrieval":
            whole = METRICS["tasks"][task]["val"]["model"][metric]
            assert recorded[metric] == pytest.approx(whole, abs=0.04), task


def test_its_card_is_what_its_metrics_give(bench, tmp_path):
    assert set(METRICS["tasks"]) == set(bench.TASKS)
    bench.write_card(tmp_path, METRICS)
    written = (tmp_path / "README.md").read_text()
    assert written == (FOLDER / "README.md").read_text(), "run python benches/package_scenes.py"


def test_its_size():
    size = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    assert METRICS["bytes"] < size < 6.0e6


def test_it_does_not_find_what_is_not_there(model, drawing):
    """One class alone: the limit of the card, on a drawing."""
    for name in ("circle", "square", "triangle"):
        assert set(model.detect(drawing, [name]).labels) == {name}
    found = [
        name
        for name in ("heart", "star", "cross", "diamond", "ring")
        if model.detect(drawing, [name]).labels
    ]
    assert found == []


def test_phrases_that_are_not_there_have_no_box_but_a_presence(model, drawing):
    absent = ["a purple heart", "a black heart", "the green circle", "a red square"]
    asked = [*absent, "a red circle", "the blue object"]
    found = model.ground(drawing, asked)
    assert sorted(found.labels) == ["a red circle", "the blue object"]
    assert (found.presence[: len(absent)] < 0.5).all()
    assert (found.presence[len(absent) :] > 0.5).all()
    assert len(model.ground(drawing, asked, score_threshold=0)) == len(asked)


def test_a_negative_takes_its_regions(model, drawing):
    assert model.ground(drawing, ["the object"], boxes_per_phrase=3).labels == ["the object"] * 3
    others = model.ground(
        drawing, ["the object"], boxes_per_phrase=3, negatives=["a red circle", "a green triangle"]
    )
    assert len(others) == 1 and iou(others.boxes_xyxy[0], BOXES["square"]) > 0.5


def test_it_knows_directions(model):
    """Two stars beside a ring: the direction tells which is meant."""
    picture = Image.new("RGB", (360, 360), "white")
    pen = ImageDraw.Draw(picture)
    left, right = (20, 130, 110, 220), (250, 130, 340, 220)
    pen.ellipse((135, 130, 225, 220), outline="green", width=18)
    for box in (left, right):
        pen.polygon(star(box), fill="red")
    for text, box in (("the star left of the ring", left), ("the star right of the ring", right)):
        assert iou(model.ground(picture, [text]).boxes_xyxy[0], box) > 0.5, text


def star(box) -> list[tuple[float, float]]:
    """Corners of a five-pointed star in a box."""
    middle, radius = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), (box[2] - box[0]) / 2
    return [
        (
            middle[0] + radius * (1.0 if n % 2 == 0 else 0.4) * math.sin(math.pi * n / 5),
            middle[1] - radius * (1.0 if n % 2 == 0 else 0.4) * math.cos(math.pi * n / 5),
        )
        for n in range(10)
    ]


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


@pytest.fixture
def once():
    """A process in which nothing has been loaded."""
    KNOWN_LIMITS.clear()
    yield
    KNOWN_LIMITS.clear()


def test_one_warning_per_process_says_what_it_knows(once, tmp_path):
    with pytest.warns(PackagedModelWarning, match="'scenes'.*only drawings.*photographs") as caught:
        warnings.simplefilter("always")
        first = fiber.load("scenes", device="cpu")
        for path in ("scenes", "scenes/fine", FOLDER / "coarse"):
            fiber.load(path, device="cpu")
    assert [each.filename for each in caught] == [__file__]
    KNOWN_LIMITS.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # A copy may be trained further, as may its weights.
        first.save(tmp_path / "copy")
        fiber.load(tmp_path / "copy", device="cpu")
        load_stored("scenes/fine", device="cpu")
        read_init("scenes/fine")


def test_commands_say_it_in_one_line(once, drawing, tmp_path, monkeypatch, capsys, small_scenes):
    monkeypatch.chdir(tmp_path)
    drawing.save("drawing.png")
    for named in ([], ["--model", "scenes"]):
        assert main(["caption", "drawing.png", "--num-beams", "1", *named]) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("fiber: using the model in the package, 'scenes', which knows only")
    assert main(["eval", "scenes", "refcoco", "--data", str(small_scenes)]) == 0
    assert "drawings" not in capsys.readouterr().err


def test_a_model_of_that_name_takes_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("scenes").mkdir()  # such as a data folder
    assert fiber.load("scenes", device="cpu").heads
    load_stored("scenes/fine", device="cpu")
    fiber.load("scenes/fine", device="cpu").save("scenes/fine")
    assert fiber.load("scenes", device="cpu").heads == ("grounding",)
