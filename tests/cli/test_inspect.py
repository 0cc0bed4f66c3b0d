import json
import shutil
from pathlib import Path

import pytest

from fiber.cli import main
from fiber.data import sources
from fiber.data.scenes import generate

from .output import error_line


class TestInspect:
    @pytest.fixture
    def scenes(self, desk):
        """A data set of few pictures, made by what the command calls."""
        generate("runs/scenes", train=3, val=2, novel=0)
        return Path("runs/scenes")

    def test_inspect(self, scenes, capsys):
        assert main(["data", "inspect", "runs/scenes"]) == 0
        out = capsys.readouterr().out
        count = len(sources.captions(scenes, "train"))
        assert f"  captions   {count} records" in out
        assert "  train      3 pictures, all 96 x 96 pixels, 0 broken" in out
        assert out.index("\ntrain\n") < out.index("\nval\n")

    def test_inspect_finds_faults(self, scenes, capsys):
        pictures = sorted((scenes / "images" / "train").rglob("*.jpg"))
        pictures[0].write_bytes(pictures[0].read_bytes()[:99])
        pictures[1].unlink()
        missing = pictures[1].relative_to(scenes / "images")
        (scenes / "refcoco_train.json").write_text("{")
        assert main(["data", "inspect", "runs/scenes"]) == 1
        out = capsys.readouterr().out
        assert "  referring  unreadable" in out
        assert "2 broken" in out
        faults = [line for line in out.splitlines() if line.startswith("fault: ")]
        assert len(faults) == 3
        for name in (pictures[0].name, pictures[1].name, "refcoco_train.json"):
            assert any(name in fault for fault in faults)
        assert f"fault: picture runs/scenes/images/{missing} does not exist" in faults

    def test_inspect_of_no_data_folder(self, desk, capsys):
        assert main(["data", "inspect", "none"]) == 2
        assert "none: no such folder" in error_line(capsys)
        assert main(["data", "inspect", "more"]) == 2
        assert "no annotation file" in error_line(capsys)


def test_a_folder_of_another_tool(tmp_path, capsys, scene_picture):
    (tmp_path / "images").mkdir()
    for number in range(5):
        shutil.copy(scene_picture, tmp_path / "images" / f"{number}.jpg")
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 70, "width": 90} for i in range(5)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [10, 12, 24, 24]} for i in range(5)
        ],
        "categories": [{"id": 1, "name": "circle"}, {"id": 2, "name": "star"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert main(["data", "inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert (
        "train\n  detection  4 records, 2 to 2 words, 4 boxes, 2 classes (circle 4, star 0)" in out
    )
    assert "val\n  detection  1 records" in out and "1 of its 5 pictures" in out
    assert "train      4 pictures" in out and "0 broken" in out
