import errno
import os

import pytest
from PIL import Image

from fiber.postprocess.files import save_image

PICTURE = Image.new("RGB", (8, 6), (200, 10, 10))


def save(path):
    save_image(lambda: PICTURE, path)


def never():
    pytest.fail("drawn for nothing")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.b.jpeg", "JPEG"), ("a.webp", "WEBP")],
)
def test_the_ending_names_the_format(tmp_path, name, kind):
    save(str(tmp_path / name))
    with Image.open(tmp_path / name) as picture:
        assert (picture.format, picture.size) == (kind, (8, 6))
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("name", "ending"), [("annot", "''"), ("annot.docx", "'.docx'")])
def test_unknown_ending(tmp_path, name, ending):
    with pytest.raises(
        ValueError, match=rf"{name}: unknown suffix {ending}; expected \.png, \.jpg"
    ):
        save_image(never, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"a.png: the folder {tmp_path / 'none'} does not"):
        save_image(never, tmp_path / "none" / "a.png")


def test_a_folder_or_a_pipe_is_not_replaced(tmp_path):
    (tmp_path / "a.png").mkdir()
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(IsADirectoryError, match=r"a\.png is a folder"):
        save_image(never, tmp_path / "a.png")
    with pytest.raises(FileExistsError, match=r"b\.png is a named pipe"):
        save_image(never, tmp_path / "b.png")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_failed_write_leaves_the_old_picture(tmp_path, monkeypatch, error):
    save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def half(self, path, *_):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(type(error)) as caught:
        save(tmp_path / "a.png")
    if isinstance(error, OSError):
        assert "a.png could not be written (No space left)" in str(caught.value)
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == errno.ENOSPC
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before
