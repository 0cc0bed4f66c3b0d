"""Commands that find boxes in frames of videos."""

import pytest
from PIL import Image

from fiber.cli import main
from tests.videos import MP4, stand_in

from .output import error_line, lines


@pytest.fixture
def video_desk(desk, monkeypatch):
    stand_in(monkeypatch)
    (desk / "clip.mp4").write_bytes(MP4)
    return desk


@pytest.mark.parametrize(("command", "texts"), [("ground", "--phrases"), ("detect", "--classes")])
def test_frames_of_a_video_between_images(command, texts, video_desk, capsys):
    arguments = [command, "a.jpg", "clip.mp4", "b.jpg", texts, "circle", "--every", "10"]
    assert main([*arguments, "--save", "found"]) == 0
    results = lines(capsys)
    names = ["a.jpg", "clip.mp4", "clip.mp4", "clip.mp4", "b.jpg"]
    assert [result["image"] for result in results] == names
    assert [result.get("frame") for result in results] == [None, 0, 10, 20, None]
    assert [result.get("seconds") for result in results[1:4]] == [0.0, 1.0, 2.0]
    assert list(results[1])[:4] == ["image", "frame", "seconds", "width"]
    assert (results[1]["width"], results[1]["height"]) == (40, 30)
    saved = sorted(path.name for path in (video_desk / "found").iterdir())
    frames = [f"clip-{number:06}.png" for number in (0, 10, 20)]
    assert saved == ["a.png", "b.png", *frames]
    # The frame itself, which is gray, below its boxes.
    pixel = Image.open(video_desk / "found/clip-000020.png").getpixel((200, 200))
    assert pixel == (20, 20, 20) or command == "ground"


def test_a_table_names_the_frame(video_desk, capsys, monkeypatch):
    monkeypatch.setattr("fiber.cli.asking.is_terminal", lambda _: True)
    assert main(["ground", "clip.mp4", "--phrases", "circle", "--every", "12"]) == 0
    printed = capsys.readouterr().out
    assert "clip.mp4, frame 12 at 1.20 s  (40 x 30 pixels)" in printed


def test_every_frame_by_default(video_desk, capsys):
    assert main(["ground", "clip.mp4", "--phrases", "circle"]) == 0
    assert [result["frame"] for result in lines(capsys)] == list(range(25))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jpg", "--every", "2"], "--every 2 is for videos; expected a file that ends in .avi"),
        (["words.mp4"], "words.mp4 is no video; expected one of MP4"),
        (["none.mp4"], "none.mp4: no such image file"),
        (["clip.mp4", "--max-pixels", "100"], "40 x 30 pixels; expected at most 100"),
    ],
)
def test_what_is_wrong_is_named(arguments, message, video_desk, capsys):
    (video_desk / "words.mp4").write_text("no video")
    assert main(["ground", *arguments, "--phrases", "circle"]) == 2
    assert message in error_line(capsys)


def test_other_formats_are_for_image_files(video_desk, capsys):
    assert main(["detect", "clip.mp4", "--classes", "circle", "--format", "coco"]) == 2
    assert "--format coco is for image files; pass --format json" in error_line(capsys)
