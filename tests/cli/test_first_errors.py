"""What new users do first, and what they get: the table is first_errors.txt."""

import io
import json
import re
import shlex
import shutil
import textwrap
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import fiber
from fiber.cli import main
from fiber.inference.load import KNOWN_LIMITS

TABLE = Path(__file__).with_name("first_errors.txt")


class Row(NamedTuple):
    #: Command line after "fiber", or Python.
    did: str
    is_command: bool
    #: Exit code, or name of the exception or of the warning.
    ended: str
    said: str


def read_rows(table: str) -> list[Row]:
    rows = []
    for block in table.split("\n\n"):
        first, *more = block.strip().splitlines()
        text = " ".join(line.strip() for line in more)
        if first.startswith("$ fiber"):
            found = re.fullmatch(r"\[(\d)\] (.+)", text)
            assert found, block
            rows.append(Row(first[8:], True, found[1], found[2]))
        elif first.startswith(">>> "):
            rows.append(Row(first[4:], False, *text.split(": ", 1)))
    return rows


ROWS = read_rows(TABLE.read_text(encoding="utf-8"))


def test_the_table_has_all_rows():
    table = TABLE.read_text(encoding="utf-8")
    assert len(ROWS) == table.count("$ fiber") + table.count(">>> ") > 80
    assert len({row.did for row in ROWS}) == len(ROWS)


#: Matches the start of what to do next: an order, or the value that was expected. Words must begin
#: a part of a sentence, since a name such as `--save` or "bbox" says nothing.
WAY_ON = re.compile(
    r"(?:; |, |: |\(|\. |(?:and|or|so|to|several,) )(?i:did you mean|expected|add|ask|call|check"
    r"|convert|copy|correct|create|download|install|keep|load|move|multiply|name|open|pass|quote|raise"
    r"|remove|repeat|run|save|scale|see|set|train|unset|use|write)\b"
    r"|such as|for example, `|as in|says which|it (?:is a method of|belongs to)"
    r"|must be (?:between|from) \d"
    r"|(?:is|are) (?:answered|asked|chosen|generated|loaded|passed|set|trained) "
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.did)
def test_every_row_says_how_to_go_on(row):
    assert WAY_ON.search(row.said.removeprefix("fiber: error: "))


def test_what_says_nothing_of_a_way_on():
    for said in (
        "a.jpg: no such file",
        "'bbox' and user",
        "--save out: Not a directory",
        "a: used",
    ):
        assert not WAY_ON.search(said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, micro_models, scene_picture) -> Path:
    """What a new user has: images, a finished run, files of other programs, own data."""
    folder = tmp_path_factory.mktemp("first")
    for stage in ("coarse", "fine"):
        shutil.copytree(micro_models[stage], folder / "runs" / "demo" / stage)
    shutil.copytree(micro_models["coarse"], folder / "bare")
    (folder / "bare" / "tokenizer.json").unlink()
    data = scene_picture.read_bytes()
    (folder / "a.jpg").write_bytes(data)
    (folder / "half.jpg").write_bytes(data[: len(data) // 2])
    Image.new("RGB", (90, 70), "red").save(folder / "b.jpg")
    (folder / "words.jpg").write_text("no picture")
    (folder / "photo.avif").write_bytes(b"\0\0\0\x1cftypavif" + bytes(100))
    (folder / "page.jpg").write_text("<!DOCTYPE html><title>404</title>")
    (folder / "pointer.png").write_text("version https://git-lfs.github.com/spec/v1")
    (folder / "zero.png").write_bytes(b"")
    Image.new("RGB", (90, 70)).save(folder / "large.png")
    (folder / "empty").mkdir()
    (folder / "imgs" / "cat").mkdir(parents=True)
    shutil.copy(folder / "a.jpg", folder / "imgs" / "cat")
    torch.save({"state_dict": {"fc.bias": torch.zeros(2)}}, folder / "other.pth")
    (folder / "clip").mkdir()
    (folder / "clip" / "config.json").write_text('{"model_type": "clip"}')
    (folder / "clip" / "model.safetensors").write_bytes(b"")
    write_data(folder)
    return folder


def write_data(folder: Path) -> None:
    """Write annotation files with one mistake each, and one without."""
    lines = {
        "answer": '{"image": "a.jpg", "question": "what?", "answer": 1.5}',
        "txt": '{"image": "a.jpg", "txt": "a mug"}',
        "comma": '{"image": "a.jpg", "text": "a mug",}',
        "quotes": "{'image': 'a.jpg', 'text': 'a mug'}",
        "null": '{"image": "a.jpg", "text": None}',
        "number": '{"image": "a.jpg", "text": 7}',
        "stray": '{"image": "a.jpg", "boxes_xyxy": [[-0.0001, 0.1, 0.9, 1.01]], "labels": ["mug"]}',
        "whole": '{"image": "a.jpg", "boxes_xyxy": [[0, 0, 1, 1]], "labels": ["mug"]}',
        "gone": '{"image": "gone.jpg", "text": "a mug"}',
        "two": '{"image": "a.jpg", "text": "a mug"}\n{"image": "b.jpg", "text": "a cup"}',
    }
    for name, text in lines.items():
        (folder / f"{name}.jsonl").write_text(text)
    tables = {
        "semicolons.csv": "image;text\na.jpg;a mug\n",
        "tabs.csv": "image\ttext\na.jpg\ta mug\n",
        "table.tsv": "image\ttext\na.jpg\ta mug\n",
        "headless.csv": "a.jpg,a mug\n",
        "names.csv": "file,caption\na.jpg,a mug\n",
        "table.xlsx": "PK",
        "list.jsonl": '[{"image": "a.jpg", "text": "a mug"}]',
    }
    for name, text in tables.items():
        (folder / name).write_text(text)
    (folder / "cut.json").write_text(json.dumps(coco(["a.jpg"], {}))[:-9])
    mistakes = {
        "xyxy": {"bbox": [50, 30, 80, 60]},
        "float": {"category_id": 2.0},
        "off": {"category_id": 0},
        "outside": {"bbox": [80, 60, 25, 25]},
    }
    for name, mistake in mistakes.items():
        (folder / f"{name}.json").write_text(json.dumps(coco(["a.jpg"], mistake)))
    (folder / "unit" / "images").mkdir(parents=True)
    names = ["a.jpg", "b.jpg"]
    for name in names:
        shutil.copy(folder / name, folder / "unit" / "images")
    unit = coco(names, {"bbox": [0.1, 0.1, 0.3, 0.3]})
    (folder / "unit" / "annotations.json").write_text(json.dumps(unit))


def coco(names: list[str], mistake: dict) -> dict:
    box = {"id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], **mistake}
    sides = {"width": 90, "height": 70}
    return {
        "images": [{"id": n, "file_name": name, **sides} for n, name in enumerate(names)],
        "categories": [{"id": 1, "name": "mug"}],
        "annotations": [box | {"id": n, "image_id": n} for n in range(len(names))],
    }


@pytest.fixture(scope="module")
def model(folder):
    return fiber.load(folder / "runs" / "demo", device="cpu")


@pytest.fixture(autouse=True)
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    KNOWN_LIMITS.clear()


def check(row: Row, ended: object, said: str) -> None:
    """Check how a row ended and its whole text, but for what "{any}" stands for."""
    new = f"[{ended}] {said}" if row.is_command else f"{ended}: {said}"
    old = f"[{row.ended}] {row.said}" if row.is_command else f"{row.ended}: {row.said}"
    pattern = ".+".join(map(re.escape, old.split("{any}")))
    if not re.fullmatch(pattern, " ".join(new.split())):
        lines = textwrap.wrap(new, 96, break_long_words=False, break_on_hyphens=False)
        pytest.fail(
            f"read the text as a new user would; if it is good, write it into {TABLE.name}:\n\n"
            + textwrap.indent("\n".join(lines), " " * 4),
            pytrace=False,
        )


@pytest.mark.parametrize("row", [row for row in ROWS if row.is_command], ids=lambda row: row.did)
def test_commands(row, capsys):
    try:
        code = main(shlex.split(row.did))
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    lines = (printed.out if row.said.startswith("fault: ") else printed.err).splitlines()
    said = [line for line in lines if re.match(r"fiber[ \w]*: (error|warning): |fault: ", line)]
    assert len(said) == 1, lines
    check(row, code, said[0])


@pytest.mark.parametrize(
    "row", [row for row in ROWS if not row.is_command], ids=lambda row: row.did
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_python(row, model):
    names = {name: globals()[name] for name in ("fiber", "io", "np", "torch", "Image", "Path")}
    if row.ended.endswith("Warning"):
        with pytest.warns(UserWarning) as caught:
            eval(row.did, names, {"model": model})
        (warning,) = [each.message for each in caught if isinstance(each.message, UserWarning)]
        check(row, type(warning).__name__, str(warning))
        return
    with pytest.raises(Exception) as raised:
        eval(row.did, names, {"model": model})
    check(row, raised.type.__name__, str(raised.value))


def test_what_works(model, tmp_path):
    """What a new user may doubt: every kind of image gives the same answer."""
    expected = model.ground("a.jpg", "a red circle").to_dict()["detections"]
    data = Path("a.jpg").read_bytes()
    with Path("a.jpg").open("rb") as file, Image.open("a.jpg") as image:
        for given in (file, io.BytesIO(data), data, Path("a.jpg"), image, np.asarray(image)):
            assert model.ground(given, "a red circle").to_dict()["detections"] == expected
            both = model.ground([given, given], "a red circle")
            assert [each.to_dict()["detections"] for each in both] == [expected] * 2
    file = tmp_path / "deep.png"
    Image.open("a.jpg").convert("L").point(lambda value: value * 256, "I").convert("I;16").save(
        file
    )
    deep = model.ground(file, "a red circle").to_dict()["detections"]
    with Image.open(file) as image:
        assert image.mode == "I;16"
        assert model.ground(image, "a red circle").to_dict()["detections"] == deep
    assert model.to("cpu") is model
    assert model.stages["fine"].to(torch.device("cpu")).ground("a.jpg", "a red circle")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.ground("a.jpg", ["a red, round circle", "the star, the left one"])
