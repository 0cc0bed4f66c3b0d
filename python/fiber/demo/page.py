"""Content of the demo's report: verdict, throughput, figures and commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fiber.atomic_io import read_json
from fiber.demo.ablations import ablation_table
from fiber.demo.floors import MetricRow
from fiber.demo.folder import DemoFolder
from fiber.demo.measures import SHOWN
from fiber.demo.plan import COARSE_RECIPE, FINE_RECIPE, Plan
from fiber.demo.report import DemoReport, Throughput
from fiber.training.run_dir import RunFolder, read_metrics

_WHAT = {
    "scenes": "rendered scenes of colored shapes",
    "stamps": "real cut-outs pasted on photographs",
}


def make_report(
    folder: DemoFolder,
    plan: Plan,
    about: Mapping[str, Any],
    *,
    rows: Sequence[MetricRow],
    problems: Sequence[str],
    machine: Mapping[str, str],
    evaluated: tuple[int, float],
) -> DemoReport:
    """Collect the content of the page.

    `about` contains the kind of data, the mode and the seed. `evaluated` is the number of records
    evaluated for the table, and the evaluation time in seconds.
    """
    table, source = ablation_table(folder, about["data"], about["mode"])
    learned = sum(row.floor is not None for row in rows)
    passed = (
        f"It passed: {learned} of {len(rows)} metrics have a floor. The model reaches every floor,"
        " but none of them on permuted images."
    )
    return DemoReport(
        title=f"fiber demo, {_WHAT[about['data']]}, {about['mode']} plan, seed {about['seed']}",
        verdict="It failed:" if problems else passed,
        problems=problems,
        rows=rows,
        throughput=_throughput(folder, evaluated),
        figures=_figures(folder.path),
        commands=commands(folder.path, plan, about),
        machine=dict(machine),
        ablations=table,
        ablations_source=source,
        notes=_notes(folder.path, machine),
    )


def _notes(path: Path, machine: Mapping[str, str]) -> list[str]:
    notes = []
    for stage in ("coarse", "fine"):
        commit = read_json(path / stage / "config.json").get("commit")
        if commit and commit != machine["commit"]:
            notes.append(f"The {stage}-stage model was trained at commit {commit}.")
        if not (path / stage / "curves.png").is_file():
            notes.append(
                f"No training curves for the {stage} stage, since matplotlib is not installed."
            )
    return notes


def _throughput(folder: DemoFolder, evaluated: tuple[int, float]) -> list[Throughput]:
    speeds = []
    made = folder.noted("data_stage")
    if made:
        speeds.append(Throughput("data", made["pictures"], made["seconds"]))
    for stage in ("coarse", "fine"):
        lines = read_metrics(RunFolder(path=folder.path / stage).metrics_file)
        if lines:
            speeds.append(
                Throughput(f"{stage} training", lines[-1]["images"], lines[-1]["seconds"])
            )
    return [*speeds, Throughput("evaluation, records", *evaluated)]


def _figures(path: Path) -> list[tuple[str, Path]]:
    figures = [
        (
            "Predictions on new images (val) and on compositions that are not in the training split"
            " (novel). Boxes have the same color as their text; ground-truth boxes are dashed.",
            path / "contact_sheet.png",
        ),
        ("Coarse-stage training: captions and questions", path / "coarse" / "curves.png"),
        ("Fine-stage training: boxes", path / "fine" / "curves.png"),
    ]
    # There are no curves without matplotlib.
    return [(caption, file) for caption, file in figures if file.is_file()]


def commands(path: Path, plan: Plan, about: Mapping[str, Any]) -> list[str]:
    """Return shell commands that reproduce the demo, both as a whole and stage by stage."""
    data, seed, here = about["data"], about["seed"], shlex.quote(str(path))
    options = "" if data == "scenes" else f" --data {data}"
    options += " --fast" if about["mode"] == "fast" else ""

    def training(recipe: str, changes: Mapping[str, Any], more: str) -> str:
        fields = {**changes, "train.seed": seed}
        settings = ""
        for name, value in fields.items():
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            settings += f" --set {shlex.quote(f'{name}={text}')}"
        return f"fiber train {recipe} --data {here}/data{more} --device cpu{settings}"

    stages = {shown.task: shown.stage for shown in SHOWN}
    return [
        "# everything",
        f"fiber demo{options} --seed {seed} --output {here}",
        "",
        "# stage by stage",
        f"fiber data {data} --output {here}/data --images {plan.train_images} --seed {seed}",
        training(COARSE_RECIPE, plan.coarse, f" --output {here}/coarse"),
        training(FINE_RECIPE, plan.fine, f" --init {here}/coarse --output {here}/fine"),
        "",
        "# each task on all records of a split; the table uses a fixed random subset",
        *(
            f"fiber eval {here}/{stage} {task} --data {here}/data --split novel --device cpu"
            for task, stage in stages.items()
        ),
    ]
