import pytest

from fiber.benchmarks import photos
from tests.benchmarks.conftest import photograph


@pytest.fixture
def nothing_here(tmp_path, monkeypatch):
    """A machine without photographs."""
    monkeypatch.setattr(photos, "_next_to_checkout", lambda: None)
    monkeypatch.setattr(photos, "PACKAGE_PHOTOGRAPHS", {})
    monkeypatch.setattr(photos, "cache_folder", lambda: tmp_path / "cache")
    names = {"some-photos": ("usr/share/nowhere", "first more/second")}
    monkeypatch.setattr(photos, "DEBIAN_PHOTOGRAPHS", names)
    return tmp_path / "cache" / "some-photos"


def test_nothing_found(nothing_here):
    with pytest.raises(FileNotFoundError, match=r"--photos DIR.*--photos debian"):
        photos.find_photographs()


def test_what_was_fetched_is_found(nothing_here):
    path = photograph(nothing_here / "usr/share/nowhere/more/second.jpg", 8, 8, 0)
    assert photos.find_photographs() == [path]


def test_debian_is_fetched_only_when_named(nothing_here, monkeypatch):
    asked = []

    def unpacked(package):
        asked.append(package)
        photograph(nothing_here / "usr/share/nowhere/first.jpg", 8, 8, 0)
        return nothing_here

    monkeypatch.setattr(photos, "unpacked", unpacked)
    with pytest.raises(FileNotFoundError):
        photos.find_photographs()
    assert asked == []
    found = photos.find_photographs(["debian"])
    assert (asked, [path.name for path in found]) == (["some-photos"], ["first.jpg"])


def test_own_folders_come_alone_and_in_order(tmp_path):
    for name in ("b/2.png", "b/1.jpg", "a/deep/3.JPG", "a/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = photos.find_photographs([str(tmp_path / "b"), str(tmp_path / "a")])
    assert [path.name for path in found] == ["1.jpg", "2.png", "3.JPG"]


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing: no such folder"):
        photos.find_photographs([str(tmp_path / "missing")])
    with pytest.raises(FileNotFoundError, match="no photograph"):
        photos.find_photographs([str(tmp_path)])
