"""Ablations of the demo: fine-stage training from scratch, and training without fusion.

`python -m fiber.demo.ablations RUN` records the results of a finished demo in `ablations.json`. The
reports of demos that run without `--ablations` show these recorded results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fiber.atomic_io import read_json, write_json
from fiber.demo.floors import MetricRow
from fiber.demo.folder import DemoFolder
from fiber.demo.measures import SHOWN, SPLITS, Measures
from fiber.demo.plan import Plan
from fiber.env import describe_machine, provenance
from fiber.progress import say
from fiber.training.config.run import RunConfig

ABLATIONS_FILE = Path(__file__).with_name("ablations.json")

#: Function that trains a run, given its config, output folder and initial model.
TrainRun = Callable[[RunConfig, Path, Path | None], None]
#: Runs for each column of the table, by stage.
_RUNS = {
    "fine from scratch": {"fine": "fine_from_scratch"},
    "trained without fusion": {"coarse": "coarse_unfused", "fine": "fine_unfused"},
}


def train_ablations(folder: DemoFolder, plan: Plan, seed: int, train_run: TrainRun) -> None:
    """Train the ablation runs with the demo's data, steps and seed."""
    unfused, runs = {"model__fusion__num_fused_layers": 0}, folder.path / "ablations"
    for name, config, start in (
        ("fine_from_scratch", plan.fine_config(seed), None),
        ("coarse_unfused", plan.coarse_config(seed, **unfused), None),
        ("fine_unfused", plan.fine_config(seed, **unfused), "coarse_unfused"),
    ):
        output = runs / name
        if (output / "model.safetensors").is_file():
            say(f"{name}: already finished")
            continue
        say(f"{name} ...")
        train_run(config, output, runs / start if start else None)


def measure_ablations(
    folder: DemoFolder, plan: Plan, rows: Sequence[MetricRow], about: Mapping[str, Any]
) -> None:
    """Evaluate the ablation runs and write `ablations.json` to the demo's folder.

    `rows` are the demo's own results. `about` contains the kind of data, the mode and the seed.
    """
    values = {"the demo": {row.key: row.model for row in rows}}
    for column, runs in _RUNS.items():
        models = {stage: folder.path / "ablations" / name for stage, name in runs.items()}
        measures = Measures(folder, plan, models, prefix=f"{column}: ")
        values[column] = {
            f"{shown.metric}/{split}": measures.metrics(shown, split, "model")[shown.key]
            for split in SPLITS
            for shown in SHOWN
            if shown.stage in models
        }
    entry = {
        **about,
        "plan": plan.lengths,
        "commit": provenance()["commit"],
        "machine": describe_machine(),
        "values": values,
    }
    write_json(folder.path / "ablations.json", entry)


def ablation_table(folder: DemoFolder, data: str, mode: str) -> tuple[list[tuple[str, ...]], str]:
    """Return this demo's ablation table, or else the recorded one, and a note on its source.

    The first row contains the column names. The table is empty if neither exists.
    """
    own = folder.path / "ablations.json"
    if own.is_file():
        return _table(read_json(own)), "trained by this run"
    recorded = read_json(ABLATIONS_FILE) if ABLATIONS_FILE.is_file() else {}
    entry = recorded.get(f"{data}/{mode}")
    if entry is None:
        return [], ""
    source = (
        f"recorded at commit {entry['commit'][:12] or 'unknown'} with seed {entry['seed']},"
        f" {entry['plan']['coarse_steps']} coarse and {entry['plan']['fine_steps']} fine steps, on"
        f" {entry['machine']['processor']}; pass --ablations to train them here"
    )
    return _table(entry), source


def _table(entry: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("metric", "split", *entry["values"])]
    for shown in SHOWN:
        for split in SPLITS:
            numbers = [c.get(f"{shown.metric}/{split}") for c in entry["values"].values()]
            cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
            rows.append((shown.name, split, *cells))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Record the results of a finished `fiber demo --ablations` run."""
    parser = argparse.ArgumentParser(
        prog="python -m fiber.demo.ablations", description=main.__doc__
    )
    parser.add_argument("run", type=Path, help="folder of the finished demo")
    options = parser.parse_args(arguments)
    entry = read_json(options.run / "ablations.json")
    recorded = read_json(ABLATIONS_FILE) if ABLATIONS_FILE.is_file() else {}
    recorded[f"{entry['data']}/{entry['mode']}"] = entry
    ABLATIONS_FILE.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    print(f"wrote {ABLATIONS_FILE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
