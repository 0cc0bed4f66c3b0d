import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from fiber.cli import main
from fiber.cli.arguments import byte_count
from fiber.data import pack, sources
from fiber.data.datasets.resolve import open_source
from fiber.synthetic.scenes import generate

from .output import error_line, lines


class TestInspect:
    @pytest.fixture
    def scenes(self, desk):
        """A dataset of few pictures, made by what the command calls."""
        generate("runs/scenes", train=3, val=2, novel=0)
        return Path("runs/scenes")

    def test_inspect(self, scenes, capsys):
        assert main(["data", "inspect", "runs/scenes"]) == 0
        out = capsys.readouterr().out
        count = len(sources.captions(scenes, "train"))
        assert f"  captions   {count} records" in out
        assert "  train      3 images, all 96 x 96 pixels, 0 broken" in out
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
        assert f"fault: image runs/scenes/images/{missing} does not exist" in faults

    def test_inspect_of_a_packed_folder_at_a_url(self, scenes, desk, capsys, monkeypatch):
        monkeypatch.setenv("FIBER_CACHE", str(desk / "cache"))
        pack(scenes, desk / "packed")
        # With an empty cache, then with one that has all shards.
        for _ in range(2):
            assert main(["data", "inspect", f"file://{desk}/packed", "--verify"]) == 0
            out = capsys.readouterr().out
            assert "  train      3 images, all 96 x 96 pixels, 0 broken" in out
            assert " 0 have changed" in out
        shard = next((desk / "cache").glob("*/train-000000.tar"))
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
        assert main(["data", "inspect", f"file://{desk}/packed", "--verify"]) == 1
        assert "1 have changed" in capsys.readouterr().out
        assert main(["data", "inspect", f"file://{desk}/none"]) == 2
        assert f"file://{desk}/none/pack.json does not exist" in error_line(capsys)

    def test_inspect_of_no_data_folder(self, desk, capsys):
        assert main(["data", "inspect", "none"]) == 2
        assert "none does not exist" in error_line(capsys)
        assert main(["data", "inspect", "more"]) == 2
        assert "more has images, of which one thing is missing" in error_line(capsys)


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
    assert "val\n  detection  1 records" in out and "1 of its 5 images" in out
    assert "train      4 images" in out and "0 broken" in out


class TestOptions:
    @pytest.fixture
    def folder(self, tmp_path, scene_picture):
        shutil.copy(scene_picture, tmp_path / "1.jpg")
        lines = [{"image": "1.jpg", "text": "a b"}, {"image": "1.jpg", "text": "a b c d"}]
        (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path

    def test_a_file(self, folder, capsys):
        assert main(["data", "inspect", str(folder / "mine.jsonl")]) == 0
        out = capsys.readouterr().out
        assert "train\n  captions   2 records, 2 to 4 words" in out
        assert "words per text, captions\n  2  ####" in out and "1 images, all 90 x 70" in out

    def test_json(self, folder, capsys):
        (folder / "1.jpg").write_bytes((folder / "1.jpg").read_bytes()[:300])
        assert main(["data", "inspect", str(folder / "mine.jsonl"), "--json"]) == 1
        (found,) = lines(capsys)
        assert found["parts"][0]["records"] == 2
        assert found["pictures"][0]["statuses"]["corrupt"] == 1
        assert len(found["faults"]) == 1

    def test_a_sheet_of_nothing_that_can_be_read(self, folder, capsys):
        broken = folder / "broken"
        broken.mkdir()
        (broken / "captions_train.json").write_text("{")
        sheet = folder / "sheet.png"
        assert main(["data", "inspect", str(broken), "--sheet", str(sheet)]) == 1
        found = capsys.readouterr()
        assert "fault: " in found.out
        assert found.err.startswith(f"not saved: {sheet}: ")
        assert not sheet.exists()

    def test_a_sheet(self, folder, capsys):
        sheet = folder / "sheet.png"
        assert main(["data", "inspect", str(folder / "mine.jsonl"), "--sheet", str(sheet)]) == 0
        with Image.open(sheet) as image:
            assert image.width > 1000
        assert capsys.readouterr().out.endswith(f"\nsaved: {sheet}\n")
        assert (
            main(["data", "inspect", str(folder / "mine.jsonl"), "--sheet", str(sheet), "--json"])
            == 0
        )
        said = capsys.readouterr()
        assert json.loads(said.out) and f"saved: {sheet}" in said.err
        assert main(["data", "inspect", str(folder / "mine.jsonl"), "--sheet", str(folder)]) == 2

    def test_a_split_that_is_not_there(self, folder, capsys):
        assert main(["data", "inspect", str(folder / "mine.jsonl"), "--split", "dev"]) == 2
        assert "has no split 'dev'; available splits: 'train'" in error_line(capsys)


class TestPack:
    def test_pack_and_what_is_said(self, desk, capsys):
        generate("runs/scenes", train=3, val=2, novel=0)
        command = ["data", "pack", "runs/scenes", "--output", "packed", "--shard-size", "20KB"]
        assert main(command) == 0
        printed = capsys.readouterr()
        assert printed.out == "packed\n"
        assert "fiber: train: " in printed.err and ", fingerprint " in printed.err
        assert "fiber: 5 images in" in printed.err
        assert main(command) == 2
        assert "packed already exists" in error_line(capsys)
        assert main(["data", "inspect", "packed"]) == 0

    def test_records_that_are_left_out_are_named(self, desk, capsys):
        generate("runs/scenes", train=14, val=0, novel=0)
        pictures = sorted(Path("runs/scenes/images/train").rglob("*.jpg"))
        command = ["data", "pack", "runs/scenes", "--on-error", "skip", "--output"]
        pictures[0].unlink()
        assert main([*command, "packed"]) == 0
        printed = capsys.readouterr()
        named = [line for line in printed.err.splitlines() if line.startswith("fiber: skipped: ")]
        records = open_source("captions", "runs/scenes", "train")
        key = next(record.key for record in records if record.images == (str(pictures[0]),))
        assert f"fiber: skipped: record {key!r}: image {pictures[0]} does not exist" in named
        for picture in pictures[1:12]:
            picture.unlink()
        assert main([*command, "other"]) == 0
        printed = capsys.readouterr()
        named = [line for line in printed.err.splitlines() if line.startswith("fiber: skipped: ")]
        assert len(named) == 11 and re.fullmatch(r"fiber: skipped: and \d+ more", named[-1])
        missed = re.findall(r"(\d+) records whose pictures are missing", printed.err)
        assert sum(map(int, missed)) == 10 + int(named[-1].split()[-2])

    def test_sizes_of_shards(self, desk, capsys):
        for size in ("0", "MB", "-1", "12TB", "1.5GB"):
            with pytest.raises(SystemExit):
                main(["data", "pack", "a", "--output", "b", "--shard-size", size])
            assert f"expected a size such as 256MB, got '{size}'" in capsys.readouterr().err
        assert byte_count("3GB") == 3 << 30 and byte_count("7") == 7 and byte_count("2k") == 2048

    def test_nothing_to_pack(self, desk, capsys):
        assert main(["data", "pack", "none", "--output", "packed"]) == 2
        assert "none does not exist" in error_line(capsys)
