"""A desk to work at: finished models and pictures."""

import shutil

import pytest


@pytest.fixture
def desk(tmp_path, monkeypatch, micro_models, scene_picture):
    """A folder to work in: two finished models under runs/ and some pictures."""
    for stage in ("coarse", "fine"):
        shutil.copytree(micro_models[stage], tmp_path / "runs" / "demo" / stage)
    for name in ("a.jpg", "b.jpg", "more/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(scene_picture, tmp_path / name)
    (tmp_path / "corrupt.jpg").write_bytes(scene_picture.read_bytes()[:200])
    (tmp_path / "words.jpg").write_text("no picture at all")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path
