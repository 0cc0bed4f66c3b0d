"""The whole demo on a micro plan: its files, its exit codes, and that it goes on where it was."""

import importlib
import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fiber.config_io import replace_fields
from fiber.demo import examples, floors, measures, page, plan, run
from fiber.demo.abilities import KINDS
from fiber.demo.measures import SHOWN
from fiber.training.config.run import load_recipe

from .micro_demo import MICRO

REAL_PLANS, REAL_LAUNCH = dict(plan.PLANS), run.launch

FILES = {
    "demo.json",
    "data",
    "fine",
    "coarse",
    "measured.json",
    "rows.json",
    "contact_sheet.png",
    "report.html",
}


def leftovers(folder: Path) -> list[Path]:
    """Files under a temporary name."""
    return [path for path in folder.rglob("*") if ".part" in path.name or "partial" in path.name]


def rows_of(folder: Path) -> list[dict]:
    return json.loads((folder / "rows.json").read_text())["rows"]


@pytest.fixture
def copy(finished, tmp_path):
    """A finished demo of one's own; nothing was measured yet."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    for name in ("measured.json", "rows.json", "report.html", "contact_sheet.png"):
        (folder / name).unlink()
    return folder


@pytest.fixture
def learned(monkeypatch, tmp_path):
    """Models that know everything as long as they see the right pictures; floors at 0.8."""
    groups = [group for kinds in KINDS.values() for group in kinds]
    keys = {f"{start}{shown.key}" for shown in SHOWN for start in ("", *(f"{g}/" for g in groups))}
    values = {f"{s.metric}/{split}": [0.8, 0.8, 0.8] for s in SHOWN for split in ("val", "novel")}
    file = tmp_path / "floors.json"
    file.write_text(json.dumps({"scenes/default": {"values": values}}))
    monkeypatch.setattr(floors, "FLOORS_FILE", file)
    scores = {"whole": 0.9, "permuted": 0.2}

    def evaluate(model, task, *, data, permute_images, rerank):
        return dict.fromkeys(keys, scores["permuted" if permute_images else "whole"])

    monkeypatch.setattr(measures, "evaluate", evaluate)
    return scores


class TestFinished:
    def test_its_files(self, finished):
        assert {path.name for path in finished.iterdir()} == FILES
        assert leftovers(finished) == []
        for run_name in MICRO.runs:
            assert (finished / run_name / "model.safetensors").is_file()

    def test_its_rows(self, finished):
        known = json.loads((finished / "rows.json").read_text())
        assert (known["data"], known["mode"], known["seed"]) == ("scenes", "default", 0)
        assert {"processor", "cores", "python", "torch", "fiber"} <= set(known["machine"])
        rows = known["rows"]
        assert [(r["metric"], r["split"]) for r in rows] == [
            (shown.metric, split) for shown in SHOWN for split in ("val", "novel")
        ]
        for row in rows:
            assert 0 <= row["model"] <= 1
            assert 0 <= row["chance"] <= 1
            assert 0 <= row["blind"] <= 1
            assert 0 <= row["permuted"] <= 1
            assert row["verdict"] == "no seeds recorded"

    def test_its_abilities(self, finished):
        known = json.loads((finished / "rows.json").read_text())["abilities"]
        for task, group in (("expressions", "noun"), ("questions", "color"), ("pairs", None)):
            own = [a for a in known if a["task"] == task and group in (a["group"], None)]
            assert {a["split"] for a in own} == {"val", "novel"}
        for ability in known:
            assert ability["count"] > 0
            assert all(0 <= ability[name] <= 1 for name in ("model", "chance", "blind"))
        asked = sum(a["count"] for a in known if (a["task"], a["split"]) == ("questions", "val"))
        assert asked == 24

    def test_the_required_metrics_are_shown(self):
        names = {shown.metric.split("/")[0] for shown in SHOWN}
        for groups in floors.REQUIRED.values():
            assert {name for group in groups for name in group} <= names

    def test_its_page_stands_alone(self, finished):
        text = (finished / "report.html").read_text()
        assert "http:" not in text
        assert "https:" not in text
        sources = re.findall(r'src="([^"]{0,30})', text)
        # Twice three images of two splits, up to eight hits and misses, and two figures.
        assert 14 < len(sources) <= 22
        assert all(re.match("data:image/(png|jpeg);base64,", source) for source in sources)
        assert not re.search(r"<(script|link|iframe)", text)

    def test_its_page_is_complete(self, finished):
        text = (finished / "report.html").read_text()
        for shown in SHOWN:
            assert text.count(f">{shown.name}<") == 2
        for title in ("asked twice", "By kind of word", "Ask your own picture", "Training curves"):
            assert f"{title}</h2>" in text
        for part in ("data", *(f"{name} training" for name in MICRO.runs), "evaluation, records"):
            assert f'<td class="text">{part}</td>' in text
        for command in ("fiber demo", "fiber data", "fiber train", "fiber eval"):
            assert command in text
        assert "train.steps=4" in text
        # The legend of the curves has the losses that were trained.
        assert "itm: matching of pictures" in text and "alignment: which words" in text
        assert "processor" in text

    def test_its_sheet(self, finished):
        from PIL import Image

        with Image.open(finished / "contact_sheet.png") as sheet:
            assert sheet.width > 4 * 288
            assert sheet.height > 4 * 288

    def test_again_repeats_nothing(self, finished, capsys, monkeypatch):
        before = (finished / "rows.json").read_bytes()
        sheet = (finished / "contact_sheet.png").read_bytes()
        monkeypatch.setattr(run, "launch", None)
        monkeypatch.setattr(measures, "load_model", None)
        monkeypatch.setattr(examples, "evaluate", None)
        assert run.main(output=finished) == 1
        said = capsys.readouterr()
        assert said.err.count("already finished") == 1 + len(MICRO.runs)
        assert said.out.count("no seeds recorded") == 16
        assert (finished / "rows.json").read_bytes() == before
        assert (finished / "contact_sheet.png").read_bytes() == sheet

    def test_it_is_said_that_nothing_can_be_judged(self, finished, capsys):
        assert run.main(output=finished) == 1
        said = capsys.readouterr().err
        assert said.count("no seeds are recorded for this kind of demo") == 1
        assert "report.html" in said

    @pytest.mark.parametrize(
        ("other", "difference"),
        [({"seed": 1}, "seed: 0 -> 1"), ({"fast": True}, "mode: 'default' -> 'fast'")],
    )
    def test_another_demo_does_not_go_there(self, finished, other, difference):
        with pytest.raises(ValueError, match="different parameters") as error:
            run.main(output=finished, **other)
        assert difference in str(error.value)


class TestExitCode:
    def test_passes(self, copy, learned, capsys):
        assert run.main(output=copy) == 0
        assert capsys.readouterr().out.count(" ok") == 16
        assert "This run passed" in (copy / "report.html").read_text()
        assert {round(row["floor"], 6) for row in rows_of(copy)} == {0.74}

    def test_falls(self, copy, learned, capsys):
        learned["whole"] = 0.7
        assert run.main(output=copy) == 1
        said = capsys.readouterr()
        assert said.out.count("FELL") == 16
        assert "phrases, R@1 on novel fell below its floor: 0.700 < 0.740" in said.err
        assert "This run failed" in (copy / "report.html").read_text()

    def test_exchanged_pictures_must_fall(self, copy, learned, capsys):
        learned["permuted"] = 0.85
        assert run.main(output=copy) == 1
        said = capsys.readouterr().err
        assert "reaches its floor with permuted images: 0.850 >=" in said
        assert "fell below" not in said

    def test_permute_pictures(self, copy, learned, capsys):
        assert run.main(output=copy, permute_images=True) == 1
        said = capsys.readouterr()
        assert said.out.count("FELL") == 16
        assert said.err.count("fell below its floor: 0.200 < 0.740") == 16
        # The page stays that of the right pictures.
        assert not (copy / "report.html").exists()
        assert not (copy / "rows.json").exists()
        assert run.main(output=copy) == 0

    def test_permute_pictures_names_what_did_not_fall(self, copy, learned, capsys):
        learned["permuted"] = 0.85
        assert run.main(output=copy, permute_images=True) == 1
        assert capsys.readouterr().err.count("reaches its floor with permuted images") == 16

    def test_permuted_pictures_really_go_through_the_model(self, finished, capsys):
        run.main(output=finished, permute_images=True)
        table = capsys.readouterr().out.splitlines()[2:]
        permuted = [f"{row['permuted']:.3f}" for row in rows_of(finished)]
        assert [re.split(r"  +", line)[2] for line in table] == permuted


class TestCommands:
    def test_of_the_page(self, finished):
        commands = page.commands(finished, run.find_plan("scenes", "fast"), _about("fast"))
        assert f"fiber demo --fast --seed 3 --output {finished}" in commands
        assert f"fiber data scenes --output {finished}/data --images 40 --seed 3" in commands

    @pytest.mark.parametrize(("data", "mode"), list(REAL_PLANS))
    def test_they_train_what_the_demo_trains(self, data, mode):
        real = REAL_PLANS[data, mode]
        lines = page.commands(Path("x"), real, {"data": data, "mode": mode, "seed": 3})
        for name in real.runs:
            config, output = real.config(name, 3), f" --output x/{name}"
            words = shlex.split(next(line for line in lines if output in line))
            changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
            recipe = load_recipe(words[2])
            assert replace_fields(recipe, dict(c.split("=", 1) for c in changes)) == config

    def test_names_with_spaces(self):
        commands = page.commands(Path("a b"), run.find_plan("stamps", "default"), _about("default"))
        assert "fiber demo --seed 3 --output 'a b'" in commands

    def test_default_folders_differ(self):
        names = {
            run.default_output(d, m) for d in ("scenes", "stamps") for m in ("default", "fast")
        }
        assert len(names) == 4
        assert run.default_output("scenes", "default") == Path("runs/demo")


def _about(mode):
    return {"data": "scenes", "mode": mode, "seed": 3}


#: Where Ctrl-C comes, one after the other: what is called then, and at which call.
STOPS = [
    ("fiber.training.objectives.step.TrainStep.branches", 4),
    ("fiber.demo.measures.evaluate", 9),
    ("fiber.demo.run.write_html", 1),
]


@pytest.mark.slow
def test_stopped_in_three_stages_it_ends_with_the_same_table(finished, tmp_path, capsys):
    folder = tmp_path / "stopped"
    for target, number in STOPS:
        with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(KeyboardInterrupt):
            _stop_at(monkeypatch, target, number)
            run.main(output=folder)
        assert leftovers(folder) == []
        assert not (folder / "report.html").exists()
    capsys.readouterr()
    assert run.main(output=folder) == 1
    said = capsys.readouterr()
    assert said.err.count("already finished") == 1 + len(MICRO.runs)
    run.main(output=finished)
    assert capsys.readouterr().out == said.out
    assert rows_of(folder) == rows_of(finished)
    for stage in MICRO.runs:
        weights = [(f / stage / "model.safetensors").read_bytes() for f in (folder, finished)]
        assert weights[0] == weights[1]
    sheets = [(f / "contact_sheet.png").read_bytes() for f in (folder, finished)]
    assert sheets[0] == sheets[1]


def _stop_at(monkeypatch, target, number):
    """Raise KeyboardInterrupt at the given call of a function."""
    owner, _, name = target.rpartition(".")
    try:
        holder = importlib.import_module(owner)
    except ModuleNotFoundError:
        module, _, cls = owner.rpartition(".")
        holder = getattr(importlib.import_module(module), cls)
    original, calls = getattr(holder, name), []

    def stop(*arguments, **settings):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    monkeypatch.setattr(holder, name, stop)


def test_another_seed_is_another_demo(finished, tmp_path, monkeypatch):
    seeds = []

    def launch(command, job):
        seeds.append([word for word in command if word.startswith("train.seed=")])
        return 130 if "coarse" in command[1] else 0

    monkeypatch.setattr(run, "launch", launch)
    with pytest.raises(KeyboardInterrupt):
        run.main(output=tmp_path / "other", seed=1)
    assert seeds == [["train.seed=1"]] * len(MICRO.runs)
    images = sorted((finished / "data").rglob("*.jpg"))
    others = [tmp_path / "other" / path.relative_to(finished) for path in images]
    assert len(images) > 20
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(images, others, strict=True))


def test_a_stage_that_fails_ends_the_demo_with_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "launch", lambda command, job: 75)
    with pytest.raises(SystemExit) as stop:
        run.main(output=tmp_path / "stopped")
    assert stop.value.code == 75


@pytest.mark.slow
def test_stages_are_trained_by_processes(tmp_path, monkeypatch, capfd):
    """One step of the real recipes, by the real command."""
    few = {"train.steps": 1, "data.batch_size": 4, "train.checkpoint_every": 0}
    tiny = replace(MICRO, runs=dict.fromkeys(MICRO.runs, few))
    monkeypatch.setitem(plan.PLANS, ("scenes", "default"), tiny)
    monkeypatch.setattr(run, "launch", REAL_LAUNCH)
    demo = run.Demo(data="scenes", mode="default", seed=3, output=tmp_path)
    demo.train()
    said = capfd.readouterr()
    for stage in MICRO.runs:
        config = json.loads((tmp_path / stage / "config.json").read_text())
        assert config["train"]["seed"] == 3
        assert (tmp_path / stage / "model.safetensors").is_file()
    assert said.err.count("fine-stage model") == 1
    assert said.err.count("coarse-stage model") == 1
    assert said.err.count("on 2 x cpu") == len(MICRO.runs)
    assert "FIBER_LAUNCH_DIR" not in os.environ
