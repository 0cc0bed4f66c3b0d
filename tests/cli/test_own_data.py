"""A user's own pictures: one command trains on a file of lines, one measures with it."""

import json
from pathlib import Path

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
    assert "image_text: 4 lines with questions were skipped" in told
    assert "question: 4 lines with captions were skipped" in told
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
        (["--data", "bad.jsonl"], "task 'image_text': bad.jsonl: line 1 has no 'image'"),
        (["--data", "mine.jsonl", "--set", "data.split=test"], "no lines for split 'test'"),
        (
            ["--data", "0.png"],
            "0.png is not a captions file; expected a folder, or a file",
        ),
        (["--data", "empty.jsonl"], "empty.jsonl: line 1 has an empty 'text'"),
        (["--data", "mine.jsonl", "--set", "data.batch_size=1"], "leaves one pair per micro-batch"),
    ],
)
def test_bad_input(lines, capsys, arguments, message):
    (lines.parent / "bad.jsonl").write_text('{"text": "a dog"}\n')
    (lines.parent / "empty.jsonl").write_text('{"image": "0.png", "text": " "}\n')
    assert main(["train", "scenes_coarse", *arguments]) == 2
    assert message in error_line(capsys)
    assert not (lines.parent / "runs").exists()


def test_measuring_what_was_trained_on_is_told(lines, micro_models, capsys, monkeypatch):
    """A file without splits, lists of answers: both named accuracies, and a warning."""
    about = {"question": "what colour is it?", "answers": ["red"] * 3 + ["pink"] * 7}
    entries = [{"image": f"{number}.png"} | about for number in range(4)]
    Path("whole.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    shares = ["tasks.image_text.share=0", "train.steps=1", "data.batch_size=4"]
    settings = [part for setting in shares for part in ("--set", setting)]
    tokenizer = ["--tokenizer", str(micro_models["coarse"])]
    train = ["train", "scenes_coarse", *settings, *tokenizer, "--data"]
    assert main([*train, "whole.jsonl", "--output", "one"]) == 0
    stored = json.loads(Path("one/config.json").read_text())
    assert stored["data_path"] == str(Path("whole.jsonl").resolve())
    assert main([*train, "mine.jsonl", "--output", "two"]) == 0
    capsys.readouterr()

    def measured(model, data, split):
        assert main(["eval", model, "vqa", "--data", data, "--split", split]) == 0
        printed = capsys.readouterr()
        return json.loads(printed.out), printed.err

    metrics, told = measured("one", "whole.jsonl", "val")
    assert metrics == pytest.approx(
        dict.fromkeys(("accuracy", "official_accuracy", "published_accuracy"), 1.0)
    )
    assert "warning: task 'vqa': the model was trained on whole.jsonl, which has no splits" in told
    assert "was trained on split 'train' of mine.jsonl" in measured("two", "mine.jsonl", "train")[1]
    for model, data, split in (("two", "mine.jsonl", "val"), ("one", "mine.jsonl", "train")):
        assert "was trained on" not in measured(model, data, split)[1]
    # From elsewhere it is the same file.
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert "which has no splits" in measured("../one", "../whole.jsonl", "val")[1]


def test_the_task_that_finds_nothing_in_a_file_is_named(lines, micro_models, capsys):
    entries = map(json.loads, lines.read_text().splitlines())
    captions = [json.dumps(entry) for entry in entries if "text" in entry]
    (lines.parent / "captions.jsonl").write_text("\n".join(captions))
    problem = "captions.jsonl has only captions; expected lines with 'question' and"
    assert main(["train", "scenes_coarse", "--data", "captions.jsonl"]) == 2
    assert f"task 'question': {problem}" in error_line(capsys)
    assert main(["eval", str(micro_models["coarse"]), "vqa", "--data", "captions.jsonl"]) == 2
    assert f"task 'vqa': {problem}" in error_line(capsys)


def test_what_is_odd_in_a_file_is_counted_or_named(lines, micro_models, capsys):
    """A caption twice, one of special tokens, one of 10,000 words; then a corrupt picture."""
    tasks = ["question", "reasoning", "caption", "image_text"]
    shares = [f"tasks.{task}.share={int(task == 'image_text')}" for task in tasks]
    # Twice through the five records.
    settings = ["train.steps=5", "data.batch_size=2", "model.max_tokens=16", *shares]
    texts = ["a red wall", "a red wall", "<s></s><pad>", "a wall " * 5000]
    entries = [{"image": f"{n % 2}.png", "text": text} for n, text in enumerate(texts)]
    entries += [entries[0], {"image": "2.png", "text": "a blue wall"}]
    odd = lines.parent / "odd.jsonl"
    odd.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    command = ["train", "scenes_coarse", "--data", "odd.jsonl", "--output", "one"]
    command += ["--tokenizer", str(micro_models["coarse"])]
    command += [part for setting in settings for part in ("--set", setting)]
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "image_text: 1 repeated caption was skipped" in told
    assert "image_text: 2 of 10 texts had no words" in told
    assert "image_text: 2 of 10 texts were longer than the 16 tokens of model.max_tokens" in told
    whole = (lines.parent / "2.png").read_bytes()
    (lines.parent / "2.png").write_bytes(whole[: len(whole) // 2])
    command[command.index("one")] = "two"
    assert main(command) == 2
    assert "fiber: error: record 'odd/6': 2.png: PNG: " in capsys.readouterr().err
