"""`fiber segment`."""

import json

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco
from PIL import Image

from fiber.cli import main
from tests.models.xdecoder.small_model import CLASSES, PHRASES, small_model, some_images

from .output import error_line, lines

LIST, LOW = "; ".join(CLASSES), ["--threshold", "0", "--overlap", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("segment")
    small_model().save(path / "model")
    for number, image in enumerate(some_images()[:2]):
        Image.fromarray(image).save(path / f"{number}.png")
    return path


@pytest.fixture
def ask(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return lambda *options: main(["segment", "0.png", "1.png", "--model", "model", *options])


def test_classes(ask, capsys, tmp_path):
    assert ask("--classes", LIST, "--stuff", "grass; sky", *LOW, "--save", str(tmp_path)) == 0
    found = lines(capsys)
    expected = small_model().segment(
        some_images()[:2],
        CLASSES,
        stuff=["grass", "sky"],
        score_threshold=0,
        overlap_threshold=0,
    )
    for number, (result, own) in enumerate(zip(found, expected, strict=True)):
        assert list(result) == ["image", "width", "height", "model", "kind", "segments"]
        assert result["image"] == f"{number}.png" and result["kind"] == "panoptic"
        masks = [coco.decode(each["segmentation"]) for each in result["segments"]]
        assert np.array_equal(np.array(masks, bool).reshape(own.masks.shape), own.masks)
        assert (tmp_path / f"{number}.png").exists()


def test_phrases(ask, capsys):
    texts = []
    for more in ([], ["--alone"]):
        assert ask("--phrases", "; ".join(PHRASES), *more) == 0
        found = lines(capsys)
        assert [each["label"] for each in found[0]["segments"]] == PHRASES
        texts.append(found)
    assert texts[0] != texts[1]


def test_kinds(ask, capsys):
    assert ask("--classes", LIST, "--kind", "instance", "--max-instances", "3") == 0
    assert all(0 < len(each["segments"]) <= 3 for each in lines(capsys))
    assert ask("--classes", LIST, "--kind", "semantic") == 0
    for each in lines(capsys):
        assert sum(part["area"] for part in each["segments"]) == each["width"] * each["height"]


def test_a_table_on_a_terminal(ask, capsys, monkeypatch):
    monkeypatch.setattr("fiber.cli.asking.is_terminal", lambda stream: True)
    assert ask("--classes", LIST, "--kind", "semantic") == 0
    out = capsys.readouterr().out
    assert "0.png  (64 x 64 pixels)\n" in out and " pixels  " in out
    assert ask("--classes", LIST, "--threshold", "1") == 0
    assert "nothing found" in capsys.readouterr().out


def test_vectors_are_written_and_read(ask, capsys, tmp_path):
    file, other = str(tmp_path / "v.safetensors"), ["--vectors"]
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    assert ask("--classes-file", str(tmp_path / "classes.txt"), "--vectors", file, *LOW) == 0
    first = capsys.readouterr().out
    assert ask("--vectors", file, *LOW) == 0
    assert capsys.readouterr().out == first
    assert ask("--classes", LIST, "--vectors", file, *LOW) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == json.loads(first.splitlines()[0])
    assert ask("--classes", "dog", *other, file) == 2
    assert "has the classes red square, " in error_line(capsys)
    assert ask("--vectors", str(tmp_path / "none.safetensors")) == 2
    assert "none.safetensors does not exist; pass --classes" in error_line(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected classes or phrases, got neither"),
        (["--phrases", "dog", "--stuff", "dog"], "--stuff is for classes"),
        (["--phrases", "dog", "--kind", "instance"], "--kind is for classes"),
        (["--classes", "dog", "--alone"], "--alone is for --phrases"),
        (["--classes", "dog; dog"], "'dog' is there twice"),
        (["--classes", "dog", "--stuff", "sky"], "stuff 'sky' is no class"),
        (["--classes", "dog", "--max-instances", "3"], "max_instances is for kind 'instance'"),
    ],
)
def test_wrong_use(ask, capsys, options, message):
    assert ask(*options) == 2
    assert message in error_line(capsys)


def test_a_model_without_masks(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["segment", "0.png", "--classes", "dog", "--model", "scenes/coarse"]) == 2
    assert "segment needs the head 'mask'" in capsys.readouterr().err
    assert main(["segment", "0.png", "--classes", "dog"]) == 2
    assert "with the head 'mask'" in error_line(capsys)
