"""A package with a model family and a task works without an edit of fiber; see its pyproject.toml.

It is installed for other processes only, in a folder that they find by PYTHONPATH.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from fiber.checkpoints.model_dir import load_model
from fiber.config_io import to_dict
from fiber.training.config.run import load_recipe
from fiber.training.metrics_file import read_metrics
from fiber.training.run_dir import RunFolder
from tests.processes import run_python

OUTSIDE = Path(__file__).parent
RECIPE = "fiber_counting.recipes:scenes_counting"
STEPS = {"train.steps": 4, "train.checkpoint_every": 2, "train.log_every": 1}
#: Runs the command lines of a JSON list in one process, and prints their exit codes and outputs.
COMMANDS = """
import contextlib, io, json, sys
from fiber.cli import main

ends = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    ends.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(ends))
"""
#: Trains, stops after a step, resumes, and asks.
JOB = """
import json, pickle, sys
from pathlib import Path

import fiber
from fiber.config_io import replace_fields, to_dict
from fiber.inference.stages import StagedModel
from fiber.models.heads import MissingHeadError
from fiber.training.config.run import differences, load_recipe
from fiber.training.plan.cluster import Cluster, plan_run
from fiber_counting.recipes import scenes_counting

given = json.loads(sys.argv[1])
output = Path(given["output"])
config = replace_fields(scenes_counting(), given["steps"])


class Stop(fiber.Callback):
    def on_step_end(self, step, metrics):
        if step == 3:
            raise KeyboardInterrupt


options = {"data": given["data"], "device": "cpu", "threads": 1, "quiet": True}
fiber.train(config, output=output / "whole", **options)
try:
    fiber.train(config, output=output / "resumed", callbacks=[Stop()], **options)
except KeyboardInterrupt:
    fiber.train(config, output=output / "resumed", resume=True, **options)

model = fiber.load(output / "whole", device="cpu")
images = given["images"]
scenes = fiber.load("scenes", device="cpu")
refused = []
for other in (scenes, scenes.stages["coarse"]):
    try:
        other.count(images[0])
    except MissingHeadError as error:
        refused.append(str(error))
both = StagedModel({**scenes.stages, "toy": model})
assert both.count(images) == model.count(images)
assert pickle.loads(pickle.dumps(config)) == config
plan = plan_run(config, Cluster(gpus=1, gpu="h100"))
question = load_recipe("small_vqa")
changed = replace_fields(question, {"tasks.counting.count": 2.0})
print(json.dumps({
    "counts": [model.count(images), model.count(images[0])],
    "refused": refused,
    "flops": plan.flops_per_sample,
    "question": to_dict(question),
    "differences": differences(question, changed),
    "active": differences(scenes_counting(), replace_fields(config, {"tasks.counting.count": 2.0})),
}))
"""


def environment(site: Path) -> dict[str, str]:
    paths = [str(site), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def run(site: Path, folder: Path, code: str, given: object):
    """Run code with the package; return what it prints as JSON."""
    script = folder / "job.py"
    script.write_text(code)
    done = run_python([script, json.dumps(given)], folder=folder, environment=environment(site))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def write_metadata(site: Path, name: str, entries: dict[str, dict[str, str]]) -> None:
    """Write what an installer writes of a package: its name and entry points."""
    folder = site / f"{name.replace('-', '_')}-0.1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    lines = []
    for group, targets in entries.items():
        lines += [f"[{group}]", *(f"{entry} = {target}" for entry, target in targets.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package as its wheel installs it."""
    folder = tmp_path_factory.mktemp("site")
    project = tomllib.loads((OUTSIDE / "pyproject.toml").read_text())
    for package in project["tool"]["setuptools"]["packages"]:
        source = OUTSIDE.joinpath(*package.split("."))
        target = folder.joinpath(*package.split("."))
        target.mkdir(parents=True)
        for file in source.glob("*.py"):
            shutil.copy(file, target)
    write_metadata(folder, project["project"]["name"], project["project"]["entry-points"])
    return folder


@pytest.fixture(scope="module")
def images(small_scenes):
    return [str(path) for path in sorted((small_scenes / "images" / "val").rglob("*.jpg"))[:3]]


@pytest.fixture(scope="module")
def job(site, small_scenes, images, tmp_path_factory):
    """Runs "whole" and "resumed" in a folder, and what the code printed."""
    folder = tmp_path_factory.mktemp("job")
    given = {"data": str(small_scenes), "images": images, "output": str(folder), "steps": STEPS}
    return folder, run(site, folder, JOB, given)


@pytest.mark.slow
def test_a_resumed_run_ends_like_an_undisturbed_one(job):
    folder, _ = job
    whole, resumed = (load_bytes(folder / name) for name in ("whole", "resumed"))
    assert whole == resumed
    starts = (folder / "resumed" / "attempts.jsonl").read_text().splitlines()
    assert len(starts) == 2
    losses = [
        [(line["step"], line["losses"]) for line in read_metrics(folder / name / "metrics.jsonl")]
        for name in ("whole", "resumed")
    ]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == [1, 2, 3, 4]
    assert all(set(each) == {"count"} for _, each in losses[0])


def load_bytes(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_model_is_asked_by_the_method_of_the_task(job, images):
    counts, count = job[1]["counts"]
    assert len(counts) == len(images)
    assert count == counts[0]
    assert all(0 <= each <= 7 for each in counts)
    # Models of this package have the method, but not the head.
    assert len(job[1]["refused"]) == 2
    assert all("'count'" in each for each in job[1]["refused"])


@pytest.mark.slow
def test_a_plan_runs_the_losses_of_the_task(job):
    # The products of a convolution are twice its weights at each of 12 x 12 places, and those of
    # the backward pass are twice as many, but for images, which need no gradient.
    width, places, classes = 24, 12 * 12, 8
    patches = 2 * 3 * 4 * 4 * width * places
    layers = 2 * (2 * 9 * width * width * places)
    head = 2 * width * classes
    assert job[1]["flops"] == 2 * patches + 3 * layers + 3 * head


@pytest.mark.slow
def test_runs_of_other_tasks_are_stored_without_the_task(job):
    assert job[1]["question"] == to_dict(load_recipe("small_vqa"))
    assert job[1]["differences"] == []
    assert any(line.startswith("tasks.counting.count: 1") for line in job[1]["active"])


@pytest.mark.slow
def test_a_run_whose_package_is_not_installed_names_it(job, tmp_path):
    run_folder = shutil.copytree(job[0] / "whole", tmp_path / "run")
    with pytest.raises(ValueError, match=r"tasks\.counting.*fiber\.tasks"):
        RunFolder(run_folder).stored_config()
    with pytest.raises(ValueError, match=r"'toy'.*fiber\.families"):
        load_model(run_folder)
    values = json.loads((run_folder / "config.json").read_text())
    del values["tasks"]["counting"]
    values["tasks"]["question"]["share"] = 1
    (run_folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"model\.family.*'toy'.*fiber\.families"):
        RunFolder(run_folder).stored_config()


@pytest.mark.slow
def test_commands(site, job, small_scenes, images, tmp_path):
    model, published = job[0] / "whole", tmp_path / "published.safetensors"
    train = ["train", RECIPE, "--data", str(small_scenes), "--output", "again", "--device", "cpu"]
    train += [word for name, value in STEPS.items() for word in ("--set", f"{name}={value}")]
    lines = [
        [*train, "--workers", "1"],
        ["eval", str(model), "counting", "--data", str(small_scenes), "--threads", "1"],
        ["count", str(model), *images],
        ["plan", RECIPE, "--gpus", "2", "--json"],
        ["convert", str(model), str(published), "--to", "published"],
        ["convert", str(published), "copy", "--tokenizer", str(model)],
        ["convert", str(model / "checkpoints" / "step-00000002"), "earlier"],
        ["doctor"],
        ["--help"],
    ]
    ends = run(site, tmp_path, COMMANDS, lines)
    printed = {line[0]: out for line, (_, out, _) in zip(lines, ends, strict=True)}
    for line, (code, _, err) in zip(lines, ends, strict=True):
        assert code == 0, (line, err)
        assert "warning" not in err, (line, err)
    assert load_bytes(tmp_path / "again") == load_bytes(model)
    metrics = json.loads(printed["eval"])
    assert set(metrics) == {"accuracy", "mean_error", "chance_accuracy"}
    assert 0 <= metrics["accuracy"] <= 1
    assert 0 < metrics["chance_accuracy"] <= 1
    counted = [json.loads(line) for line in printed["count"].splitlines()]
    assert counted == [
        {"image": image, "count": count}
        for image, count in zip(images, job[1]["counts"][0], strict=True)
    ]
    assert json.loads(printed["plan"])["flops_per_sample"] == job[1]["flops"]
    assert load_bytes(tmp_path / "copy") == load_bytes(model)
    assert load_bytes(tmp_path / "earlier") != load_bytes(model)
    assert (
        "fiber-counting 0.1 (fiber_counting.toy.architectures:ARCHITECTURES)" in printed["doctor"]
    )
    assert "fiber-counting 0.1 (fiber_counting.counting.fields:TASK)" in printed["doctor"]
    assert "count the objects in images" in printed["--help"]


def test_entries_that_fail_break_nothing(site, tmp_path):
    broken = tmp_path / "site"
    modules = {
        "raises": "raise RuntimeError('first line\\n' + 'x' * 5000)",
        "exits": "import sys; sys.exit(3)",
        "taken": "from fiber.tasks.question.fields import TASK",
        "command": (
            "import dataclasses\n"
            "from fiber_counting.counting.fields import TASK as OTHER\n"
            "TASK = dataclasses.replace(OTHER, name='command', evaluations={}, methods={},\n"
            "    command='broken_package.command:add_command')\n"
            "def add_command(commands):\n"
            "    commands.add_parser('unfinished', help='unfinished')\n"
            "    commands.add_parser('search')\n"
        ),
    }
    (broken / "broken_package").mkdir(parents=True)
    shutil.copytree(site / "fiber_counting", broken / "fiber_counting")
    for name, code in modules.items():
        (broken / "broken_package" / f"{name}.py").write_text(code)
    targets = {name: f"broken_package.{name}:TASK" for name in [*modules, "absent"]}
    write_metadata(broken, "broken-package", {"fiber.tasks": targets})
    lines = [["--help"], ["doctor"], ["recipes"]]
    (code, out, err), (doctor_code, doctor, _), (recipes_code, _, _) = run(
        broken, tmp_path, COMMANDS, lines
    )
    assert (code, recipes_code, doctor_code) == (0, 0, 1)
    assert "unfinished" not in out
    assert "search" in out
    warned = err.splitlines()
    for name, reason in {
        "raises": "RuntimeError: first line",
        "exits": "SystemExit: 3",
        "taken": "'question'",
        "absent": "broken_package.absent",
    }.items():
        (line,) = [line for line in warned if f"{name!r} of broken-package 0.1" in line]
        assert reason in line
        assert len(line) < 500
        (row,) = [line for line in doctor.splitlines() if line.startswith(f"  ! {name} ")]
        assert reason in row
    (line,) = [line for line in warned if "'command' of broken-package 0.1" in line]
    assert "search" in line
    assert len(warned) == 5


@pytest.mark.package
def test_the_wheel_is_what_the_other_tests_install(site, tmp_path):
    source = shutil.copytree(OUTSIDE, tmp_path / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--wheel-dir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    for folder in (site, installed):
        assert len([*folder.glob("*.dist-info")]) == 1
    files = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.py")}
        for folder in (site, installed)
    ]
    assert files[0] == files[1]
    entries = [
        {*next(folder.glob("*.dist-info/entry_points.txt")).read_text().split("\n")} - {""}
        for folder in (site, installed)
    ]
    assert entries[0] == entries[1]
