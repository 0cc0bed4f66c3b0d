import os
import shutil
from pathlib import Path

import pytest

from fiber.checkpoints.stages import packaged_model
from fiber.cli.models import choose_model, finished_models


class TestModelChoice:
    def test_nothing_there(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"--model.*'nlvr2'.*no model found"):
            choose_model(None, "nlvr2")

    def test_no_model_with_the_head(self, desk):
        shutil.rmtree("runs/demo/coarse")
        with pytest.raises(FileNotFoundError, match=r"'nlvr2'.*runs/demo/fine"):
            choose_model(None, "nlvr2")

    @pytest.mark.parametrize("heads", [("grounding",), ("vqa",), ("caption",), ("itc", "itm")])
    def test_the_model_in_the_package_is_the_last_resort(
        self, tmp_path, monkeypatch, capsys, heads
    ):
        monkeypatch.chdir(tmp_path)
        assert choose_model(None, *heads) == "scenes"
        message = "fiber: using the model in the package, 'scenes', which knows only drawings"
        assert capsys.readouterr().err.startswith(message)

    @pytest.mark.parametrize("named", ["scenes", "scenes/fine", str(packaged_model("scenes"))])
    def test_the_model_in_the_package_by_name(self, desk, capsys, named):
        assert choose_model(named, "grounding") == named
        line = capsys.readouterr().err
        assert line.startswith(
            f"fiber: using the model in the package, {named!r}, which knows only"
        )
        assert "for a photograph is a guess" in line and line.count("\n") == 1
        # A folder of that name is another model.
        shutil.copytree("runs/demo", "scenes")
        assert choose_model("scenes", "grounding") == "scenes"
        assert capsys.readouterr().err == ""

    def test_the_newest_one_with_the_head(self, desk, capsys):
        shutil.copytree("runs/demo/fine", "runs/later")
        # The copy has the time of its model, which may be long ago.
        past = Path("runs/later/model.safetensors").stat().st_mtime - 100
        os.utime("runs/demo/fine/model.safetensors", (past, past))
        assert choose_model(None, "grounding") == "runs/later"
        assert capsys.readouterr().err == (
            "fiber: using runs/later, the newest model in runs/; pass --model for another, such as"
            " 'scenes', the one in the package\n"
        )
        assert choose_model(None, "vqa") == "runs/demo/coarse"

    def test_a_named_one_is_taken_as_it_is(self, desk):
        assert choose_model("anything", "vqa") == "anything"

    def test_a_run_behind_a_link_counts(self, desk, tmp_path):
        shutil.move("runs/demo", tmp_path / "elsewhere")
        Path("runs/demo").symlink_to(tmp_path / "elsewhere")
        # A link that leads back up is no endless walk, and no run counts twice.
        (tmp_path / "elsewhere" / "again").symlink_to(Path("runs").resolve())
        assert choose_model(None, "vqa") == "runs/demo/coarse"
        found = [str(folder) for _, folder, _ in finished_models(Path("runs"))]
        assert found == ["runs/demo/coarse", "runs/demo/fine"]

    def test_unfinished_runs_and_foreign_folders_do_not_count(self, desk):
        shutil.move("runs/demo/fine", "runs/demo/checkpoints")
        shutil.copytree("runs/demo/coarse", "runs/foreign")
        Path("runs/foreign/config.json").write_text('{"model_type": "bert"}')
        Path("runs/started").mkdir()
        shutil.copy("runs/demo/coarse/config.json", "runs/started")
        for name, config in (("list", "[]"), ("null", '{"model": null}'), ("pipe", None)):
            shutil.copytree("runs/demo/coarse", f"runs/{name}")
            Path(f"runs/{name}/config.json").unlink()
            if config is None:
                os.mkfifo(f"runs/{name}/config.json")
            else:
                Path(f"runs/{name}/config.json").write_text(config)
        assert [str(folder) for _, folder, _ in finished_models(Path("runs"))] == [
            "runs/demo/coarse"
        ]
