"""Control characters in files never reach a terminal, whatever prints their text."""

import json
import sys
import unicodedata
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import fiber
from fiber import doctor
from fiber.cli import main
from fiber.inference import Model

#: Sets the title, clears the screen, and again with the one-byte controls of some terminals;
#: reverses what follows; starts a line of its own.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b2J\u202e\r"
LINE = "\nfiber: forged"


@pytest.fixture
def printed(capsys):
    """Check what was printed since the last call; return it."""

    def check():
        output = capsys.readouterr()
        for text in output:
            controls = {c for c in text if unicodedata.category(c) in ("Cc", "Cf")} - {"\n"}
            assert not controls
            assert LINE not in text
        return output

    return check


@pytest.fixture
def terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)


def test_names_of_tensors(desk, printed):
    torch.save({"state_dict": {HOSTILE + LINE: torch.zeros(2)}}, "other.ckpt")
    for command in (
        ["answer", "a.jpg", "what?", "--model", "other.ckpt"],
        ["convert", "other.ckpt", "x"],
    ):
        assert main(command) == 2
        assert "owned" in printed().err


@pytest.mark.parametrize("on_terminal", [True, False])
def test_labels_of_a_model(desk, printed, monkeypatch, on_terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: on_terminal)
    fine = fiber.load("runs/demo/fine", device="cpu")
    label = "\x1b[2J\x9b\nmug"  # A prompt of this model has 16 tokens.
    Model(fine.network, fine.tokenizer, classes=(label, "mug")).save("runs/labels")
    options = ["--model", "runs/labels", "--threshold", "0", "--max-detections", "20"]
    assert main(["detect", "a.jpg", *options]) == 0
    output = printed()
    assert "fiber: classes: \\x1b[2J\\x9b\\nmug, mug" in output.err
    if on_terminal:
        assert "  \\x1b[2J\\x9b\\nmug  " in output.out
    else:
        found = json.loads(output.out)["detections"]
        assert {item["label"] for item in found} == {label, "mug"}


def test_answers_of_a_model(desk, printed, terminal):
    answers = [HOSTILE + LINE + str(number) for number in range(12)]
    (desk / "answers.json").write_text(json.dumps(answers))
    asked = ["answer", "a.jpg", "what?", "--answers", "answers.json"]
    assert main(asked) == 0
    assert printed().out.count("owned") == 3
    assert main([*asked, "--json"]) == 0
    assert {each["answer"] for each in json.loads(printed().out)["answers"]} < set(answers)


def test_names_of_files(desk, printed, monkeypatch):
    name = HOSTILE + LINE.replace("/", "")
    folder = desk / "hostile"
    folder.mkdir()
    (folder / f"{name}.jpg").write_bytes((desk / "a.jpg").read_bytes())
    # A name that is not UTF-8, which a stream cannot encode.
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "\udcff.png")
    assert main(["caption", "hostile", "--num-beams", "1", "--save", "out"]) == 0
    names = [json.loads(line)["image"] for line in printed().out.splitlines()]
    assert names == [f"hostile/{name}.jpg", "hostile/\udcff.png"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["caption", "hostile", "--num-beams", "1"]) == 0
    assert "owned" in printed().out
    (folder / f"{name}.jpg").write_bytes(b"no image")
    assert main(["caption", "hostile"]) == 2
    assert "owned" in printed().err
    # As a pattern of the shell may give it.
    with pytest.raises(SystemExit):
        main(["recipes", "refcoco", f"--{name}"])
    assert "owned" in printed().err


def test_fields_of_annotations(desk, printed):
    (desk / "own.jsonl").write_text(json.dumps({"image": "a.jpg", "text": "a", HOSTILE + LINE: 1}))
    assert main(["data", "inspect", "own.jsonl"]) == 2
    assert "owned" in printed().err
    boxes = [[10, 12, 34, 36]]
    records = [
        {"image": "a.jpg", "text": "a mug", "split": "train"},
        {"image": "b.jpg", "question": "what?", "answer": HOSTILE + LINE, "split": HOSTILE},
        {"image": HOSTILE, "text": "a mug", "split": "train"},
    ]
    (desk / "own.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert main(["data", "inspect", "own.jsonl"]) in (1, 2)
    output = printed()
    assert "owned" in output.out + output.err
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 90, "height": 70}],
        "categories": [{"id": 1, "name": HOSTILE + LINE}, {"id": 2, "name": "x" * 100_000}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": number, "bbox": [10, 12, 20, 20]}
            for number in (1, 2)
        ],
    }
    (desk / "boxes.json").write_text(json.dumps(coco))
    assert main(["data", "inspect", "boxes.json"]) == 0, boxes
    output = printed()
    assert "owned" in output.out and len(output.out) < 3000


def test_parameters_of_a_dataset(desk, printed, small_scenes):
    folder = desk / "scenes"
    folder.mkdir()
    for file in small_scenes.iterdir():
        (folder / file.name).symlink_to(file)
    description = json.loads((small_scenes / "dataset.json").read_text())
    description["parameters"] = {HOSTILE + LINE: HOSTILE, "long": "x" * 100_000, "deep": [[1]]}
    (folder / "dataset.json").unlink()
    (folder / "dataset.json").write_text(json.dumps(description))
    assert main(["data", "inspect", "scenes"]) == 0
    first = printed().out.splitlines()[0]
    assert "owned" in first and "deep [[1]]" in first and len(first) < 1000
    (folder / "dataset.json").write_text("[1]")
    assert main(["data", "inspect", "scenes"]) == 2
    assert "dataset.json: expected a JSON object" in printed().err


def test_whatever_a_command_prints(printed, monkeypatch):
    """All of them print to the same streams."""
    long = HOSTILE + "x" * 1_000_000

    def command():
        print(HOSTILE)
        print(HOSTILE, file=sys.stderr)
        warnings.warn(long + LINE, UserWarning, stacklevel=1)
        raise ValueError(long + LINE)

    monkeypatch.setattr(doctor, "main", command)
    assert main(["doctor"]) == 2
    output = printed()
    assert output.out.count("owned") == 1 and output.err.count("owned") == 3
    assert "fiber: warning: " in output.err and "fiber: error: " in output.err
    assert len(output.err) < 10_000


def test_the_traceback_of_an_unexpected_error(printed, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def command():
        raise RuntimeError(HOSTILE + "x" * 1_000_000)

    monkeypatch.setattr(doctor, "main", command)
    try:
        main(["doctor"])
    except RuntimeError as error:
        sys.excepthook(RuntimeError, error, error.__traceback__)
    output = printed()
    assert "RuntimeError" in output.err and "owned" in output.err and "in command" in output.err
    assert len(output.err) < 10_000
