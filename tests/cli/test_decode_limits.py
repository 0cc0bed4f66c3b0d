"""`max_pixels` and `max_decode_bytes` of a model, an evaluation, a run and the commands."""

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

import fiber
from fiber import DecodeError
from fiber.cli import main
from fiber.data import Record
from fiber.inference import Model
from tests.training.conftest import pictures, tokenizer
from tests.training.micro_runs import coarse_config, run

from .output import error_line

__all__ = ["pictures", "tokenizer"]

#: Limits that an image of 90 x 70 pixels exceeds, with what the error says.
LIMITS = [
    ({"max_pixels": 90 * 70 - 1}, "6299 (max_pixels)"),
    ({"max_decode_bytes": 3 * 90 * 70 - 1}, "18899 (max_decode_bytes)"),
]
SIZE = "70 x 90 pixels"


@pytest.fixture
def photo(desk) -> Path:
    """A PNG, which the loader decodes as a whole, too."""
    path = desk / "photo.png"
    Image.open("a.jpg").save(path)
    return path


@pytest.mark.parametrize(("limits", "reason"), LIMITS, ids=["pixels", "bytes"])
def test_images_of_a_model(photo, limits, reason):
    model = fiber.load("runs/demo/coarse", **limits)
    for image in (photo, photo.read_bytes()):
        with pytest.raises(DecodeError) as caught:
            model.match([image], ["a cup"])
        assert SIZE in str(caught.value) and reason in str(caught.value)
        assert isinstance(image, bytes) or str(photo) in str(caught.value)
    name, value = next(iter(limits.items()))
    # An image that another library decodes is not limited.
    assert model.match([Image.open(photo)], ["a cup"]).shape == (1, 1)
    enough = fiber.load("runs/demo/coarse", **{name: value + 1})
    assert enough.match([photo], ["a cup"]).shape == (1, 1)
    with pytest.raises(ValueError, match=f"{name} is 0; expected 1 or more"):
        fiber.load("runs/demo/coarse", **{name: 0})
    with pytest.raises(ValueError, match=f"{name} is 0; expected 1 or more"):
        Model(model.network, **{name: 0})


@pytest.mark.parametrize(("limits", "reason"), LIMITS, ids=["pixels", "bytes"])
def test_images_of_an_evaluation(photo, limits, reason):
    model = fiber.load("runs/demo/coarse")
    records = [Record(key="large", images=(str(photo),), text="a cup", truth=True)] * 2
    with pytest.raises(DecodeError) as caught:
        fiber.evaluate(model, "masked_words", records, **limits)
    for part in ("'large'", str(photo), SIZE, reason):
        assert part in str(caught.value)


@pytest.mark.parametrize(("limits", "reason"), LIMITS, ids=["pixels", "bytes"])
@pytest.mark.parametrize(
    "command",
    [
        ["match", "photo.png", "a cup"],
        ["answer", "photo.png", "what is it?"],
        ["search", "a cup", "photo.png"],
        ["caption", "photo.png"],
        ["ground", "photo.png", "--phrases", "a cup"],
        ["detect", "photo.png", "--classes", "cup"],
    ],
    ids=lambda words: words[0],
)
def test_images_of_a_command(photo, capsys, command, limits, reason):
    assert main([*command, *options(limits)]) == 2
    line = error_line(capsys)
    assert "photo.png" in line and SIZE in line and reason in line


@pytest.mark.parametrize(("limits", "reason"), LIMITS, ids=["pixels", "bytes"])
def test_images_of_inspect_and_eval(photo, capsys, limits, reason):
    line = '{"image": "photo.png", "text": "a cup", "split": "val"}\n'
    Path("captions.jsonl").write_text(line)
    assert main(["data", "inspect", "captions.jsonl"]) == 0
    capsys.readouterr()
    assert main(["data", "inspect", "captions.jsonl", *options(limits)]) == 1
    shown = capsys.readouterr().out
    assert "photo.png" in shown and SIZE in shown and reason in shown
    arguments = ["eval", "runs/demo/coarse", "masked_words", "--data", "captions.jsonl"]
    assert main([*arguments, *options(limits)]) == 2
    line = error_line(capsys)
    assert "photo.png" in line and SIZE in line and reason in line


def test_images_of_a_run(tmp_path, pictures):
    config = coarse_config()
    side = Image.open(next(pictures.glob("*.png"))).width
    data = dataclasses.replace(config.data, max_pixels=side * side - 1)
    with pytest.raises(DecodeError, match=rf"{side} x {side} pixels.*\(max_pixels\)"):
        run(dataclasses.replace(config, data=data), pictures, tmp_path / "run")


def options(limits: dict[str, int]) -> list[str]:
    """The options of the command line for some limits."""
    return [
        word
        for name, value in limits.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
