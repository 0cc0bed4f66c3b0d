"""docs/export.md, whose blocks need the packages of the extras."""

import re
import shutil

import pytest

from fiber.cli import main
from tests.processes import run_python
from tests.test_docs import ROOT, blocks_of, commands_of

pytestmark = pytest.mark.slow
#: The page with the blocks that test_docs.py does not run.
PAGE = re.sub("<!-- skip: run by .* -->", "", (ROOT / "docs" / "export.md").read_text())


def test_the_page(tmp_path, monkeypatch, micro_models, scene_picture, small_scenes, exported):
    for stage in ("coarse", "fine"):
        shutil.copytree(micro_models[stage], tmp_path / "runs" / "demo" / stage)
    made = exported("X-Decoder", "onnx")
    (tmp_path / "runs" / "segmenter").symlink_to(made.parent / "model")
    shutil.copy(scene_picture, tmp_path / "photo.jpg")
    (tmp_path / "data").symlink_to(small_scenes)
    monkeypatch.chdir(tmp_path)
    commands = commands_of(PAGE)
    assert len(commands) == 9
    for command in commands:
        if command == ["export", "runs/segmenter", "graphs/segmenter"]:
            # As other tests have done.
            shutil.copytree(made, tmp_path / "graphs" / "segmenter")
            continue
        assert main(command) == 0
    code = "\n".join(block.text for block in blocks_of(PAGE) if block.language == "python")
    (tmp_path / "page.py").write_text(code)
    done = run_python(["page.py"], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "graph head_vqa: pooled: batch 0 in shape" in done.stdout
    assert "reason needs the head 'nlvr2'" in done.stdout
