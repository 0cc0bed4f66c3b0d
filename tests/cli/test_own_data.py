"""A user's own pictures: one command trains on a file of lines, one measures with it."""

import json

import numpy as np
import pytest
from PIL import Image

from fiber.cli import main

from .output import error_line

COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (40, 60, 220)}


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """mine.jsonl with captions and questions of six pictures, four of them of the split "train"."""
    monkeypatch.chdir(tmp_path)
    entries = []
    for number in range(6):
        colour = list(COLOURS)[number % 3]
        name, split = f"{number}.png", "val" if number > 3 else "train"
        Image.fromarray(np.full((20, 30, 3), COLOURS[colour], np.uint8)).save(name)
        about = {"image": name, "split": split}
        entries.append(about | {"text": f"a {colour} wall {number}"})
        entries.append(about | {"question": "what colour is it?", "answer": colour})
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_train_and_eval_with_one_file(lines, micro_models, capsys):
    short = ["--set", "train.steps=1", "--set", "data.batch_size=4", "--set", "model.max_tokens=16"]
    train = ["train", "scenes_coarse", "--data", "mine.jsonl", *short]
    tokenizer = str(micro_models["coarse"])
    assert main([*train, "--tokenizer", tokenizer, "--output", "one"]) == 0
    told = capsys.readouterr().err
    # A file may hold what several tasks need; nobody is left without knowing.
    assert "image_text: 4 lines with questions were left out" in told
    assert "question: 4 lines with captions were left out" in told
    assert "records: image_text 4, question 4" in told
    config = json.loads((lines.parent / "one/config.json").read_text())
    assert config["model"]["image_text"]["num_answers"] == 3
    # The tokenizer of the model that is trained on.
    assert main([*train, "--init", "one", "--output", "two"]) == 0
    capsys.readouterr()
    for task, kind in (("vqa", "question_id"), ("retrieval", None)):
        arguments = ["eval", "two", task, "--data", "mine.jsonl", "--output", "said.json"]
        assert main(arguments) == 0
        printed = capsys.readouterr()
        assert f"task '{task}': 2 lines with" in printed.err
        metrics = json.loads(printed.out)
        assert all(0 <= value <= 1 for value in metrics.values())
        if kind:
            said = json.loads((lines.parent / "said.json").read_text())
            # Predictions are named by the lines of the questions.
            assert [entry[kind] for entry in said] == [10, 12]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mine.jsonl"], "--tokenizer"),
        (["--data", "none.jsonl"], "data file none.jsonl does not exist"),
        (["--data", "bad.jsonl"], "bad.jsonl: line 1 has no 'image'"),
        (["--data", "mine.jsonl", "--set", "data.split=test"], "no line of split 'test'"),
        (["--data", "0.png"], "0.png: a file of captions ends in .jsonl"),
    ],
)
def test_bad_input(lines, capsys, arguments, message):
    (lines.parent / "bad.jsonl").write_text('{"text": "a dog"}\n')
    assert main(["train", "scenes_coarse", *arguments]) == 2
    assert message in error_line(capsys)
    assert not (lines.parent / "runs").exists()
