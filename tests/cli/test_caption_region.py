"""`fiber caption` of a region."""

import numpy as np
import pytest
from PIL import Image

from fiber.cli import main
from tests.models.xdecoder.small_model import small_model, some_images

from .output import error_line, lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("region")
    small_model().save(path / "model")
    # 90 pixels wide, 70 high.
    for number, image in enumerate(some_images()[1:3]):
        Image.fromarray(image).save(path / f"{number}.png")
    mask = left_half()
    Image.fromarray(mask).save(path / "mask.png")
    Image.fromarray(mask.astype(np.uint8)).save(path / "ones.png")
    Image.fromarray(np.zeros((70, 90), np.uint8)).save(path / "black.png")
    Image.fromarray(np.arange(90 * 70, dtype=np.uint8).reshape(70, 90)).save(path / "many.png")
    both = np.repeat(mask[..., None] * np.uint8(255), 4, 2)
    Image.fromarray(both, "RGBA").save(path / "clear.png")
    return path


def left_half():
    mask = np.zeros((70, 90), bool)
    mask[:, :45] = True
    return mask


@pytest.fixture
def ask(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return lambda *options: main(["caption", *options, "--model", "model"])


@pytest.mark.parametrize(
    "options",
    [["--region", "mask.png"], ["--region", "ones.png"], ["--box", "0,0,45,70"]],
    ids=["white", "ones", "box"],
)
def test_the_caption_is_that_of_the_region(ask, capsys, tmp_path, options):
    assert ask("0.png", *options, "--save", str(tmp_path)) == 0
    (found,) = lines(capsys)
    model, image = small_model(), some_images()[1]
    assert found["caption"] == model.caption(image, region=left_half()) != model.caption(image)
    assert found["region_pixels"] == 70 * 45 and list(found)[-1] == "caption"
    saved = np.asarray(Image.open(tmp_path / "0.png"))
    # The region is drawn, the rest of the image is not changed.
    assert np.array_equal(saved[:70, 45:], image[:, 45:])
    assert (saved[:70, :45] != image[:, :45]).any(2).mean() > 0.9


def test_pixels_of_a_box_have_their_centers_in_it(ask, capsys):
    assert ask("0.png", "--box", "9.5,0.4,60.5,60") == 0
    assert lines(capsys)[0]["region_pixels"] == 51 * 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["1.png", "--region", "mask.png"], "mask.png: the file has 90 x 70 pixels; expected 70 x"),
        (["0.png", "--region", "black.png"], "black.png: all pixels are black; expected"),
        (["0.png", "--region", "many.png"], "many.png: the file has the colors (1, 1, 1) and (2,"),
        (["0.png", "--region", "clear.png"], "clear.png: the file has transparent pixels"),
        (["0.png", "--region", "none.png"], "none.png"),
        (["0.png", "1.png", "--region", "mask.png"], "--region is for a single image, got 2"),
        ([".", "--box", "0,0,9,9"], "--box is for a single image, got 7 images"),
        (["0.png", "--box", "0,0,91,70"], "--box 0,0,91,70 is not within the image of 90 x 70"),
        (["0.png", "--box=-1,0,9,9"], "--box -1,0,9,9 is not within the image"),
        (["0.png", "--box", "3.6,4,4.4,9"], "--box 3.6,4,4.4,9 contains no center of a pixel"),
        (["0.png", "--box", "0,0,9,9", "--sample"], "writes greedily"),
    ],
)
def test_wrong_regions(ask, capsys, options, message):
    assert ask(*options) == 2
    assert message in error_line(capsys)


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", "9,0,9,5", "0,0,inf,5", "nan,0,1,1", ""])
def test_no_boxes(ask, capsys, box):
    with pytest.raises(SystemExit) as stopped:
        ask("0.png", "--box", box)
    assert stopped.value.code == 2 and f"got {box!r}" in capsys.readouterr().err


def test_a_region_in_one_way(ask, capsys):
    with pytest.raises(SystemExit):
        ask("0.png", "--box", "0,0,9,9", "--region", "mask.png")
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_model_without_captions_of_regions(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    asked = ["caption", "0.png", "--region", "mask.png", "--model", "scenes/coarse"]
    assert main(asked) == 2
    assert "caption of a region" in error_line(capsys)
