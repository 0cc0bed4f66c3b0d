"""Measure what fusion in the backbone is needed for, and what a coarse stage saves.

Command: python benches/evidence.py runs/evidence [--experiments relations questions]
         python benches/results_page.py
Rows: results/evidence_EXPERIMENT.csv, one per run. Runs that have a row are skipped. The folder is
created, or reused if it contains the same data.

Every arm of an experiment is trained in its own way from nothing, with the same samples in the same
order. "equal time" arms train for as many more steps as take the CPU time of the first arm; their
number follows from the rows of the other arms, which are therefore made first.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from experiments import SPLITS, Rows, cpu_seconds, measured_records, run_all

from fiber.checkpoints.model_dir import load_model
from fiber.config_io import replace_fields
from fiber.data import sources
from fiber.data.record import Record
from fiber.evaluation.evaluate import evaluate
from fiber.synthetic.scenes import generate
from fiber.training.config.run import load_recipe
from fiber.training.train import train

EQUAL_TIME = ", equal time"
SEEDS = (0, 1, 2)
#: Images of the data.
IMAGES = {"train": 30_000, "val": 1500, "novel": 1500}


class Experiment(NamedTuple):
    """Arms that differ in the config, and what they are trained and measured on."""

    recipe: str
    #: Changes of the recipe that all arms share.
    changes: Mapping[str, Any]
    #: Changes of each arm; the first one is compared with the others.
    arms: Mapping[str, Mapping[str, Any]]
    #: Function of `fiber.data.sources`, and groups of its records to train on (None: all).
    reader: str
    groups: tuple[str, ...] | None
    #: Evaluated records by task, and the shown metrics as (task, metric).
    tasks: Mapping[str, int]
    metrics: tuple[tuple[str, str], ...]


def _fused(*counts: int) -> dict[str, dict[str, Any]]:
    """Return arms that fuse the last blocks, from all of stages 3 and 4 to none."""
    names = {5: "fusion in 5 blocks", 1: "fusion in 1 block", 0: "no fusion"}
    return {names[count]: {"model.fusion.num_fused_layers": count} for count in counts}


EXPERIMENTS = {
    # Referring expressions: which of two similar objects does a relation mean?
    "relations": Experiment(
        "scenes_fine",
        {"tasks.grounding.sources": ("referring",), "train.steps": 2000},
        _fused(5, 1, 0),
        "referring",
        ("relation", "noun"),
        {"refcoco": 5000},
        (("refcoco", "relation/accuracy_at_1"), ("refcoco", "noun/accuracy_at_1")),
    ),
}


def records_of(experiment: Experiment, folder: Path) -> list[Record]:
    """Read the training records of an experiment."""
    read = getattr(sources, experiment.reader)(folder, "train")
    records = [read[index] for index in range(len(read))]
    groups = experiment.groups
    return [record for record in records if groups is None or record.group in groups]


def steps_of(name: str, arm: str, rows: Sequence[Mapping[str, str]]) -> int:
    """Return the number of steps of an arm, which may follow from the pace of finished runs."""
    experiment = EXPERIMENTS[name]
    steps = experiment.changes["train.steps"]
    if not arm.endswith(EQUAL_TIME):
        return steps
    first = next(iter(experiment.arms))
    seconds = {
        each: mean(float(row["train_cpu_seconds"]) for row in rows if row["arm"] == each)
        for each in (first, arm.removesuffix(EQUAL_TIME))
    }
    ratio = seconds[first] / seconds[arm.removesuffix(EQUAL_TIME)]
    # Rounded, so that small differences of the pace do not change the run.
    return round(steps * ratio / 50) * 50


def run(folder: Path, name: str, arm: str, seed: int, steps: int) -> list[dict[str, Any]]:
    """Train and evaluate one arm; return its row."""
    experiment = EXPERIMENTS[name]
    changes = {
        **experiment.changes,
        **experiment.arms[arm.removesuffix(EQUAL_TIME)],
        "train.steps": steps,
        "train.seed": seed,
        "train.checkpoint_every": 0,
    }
    config = replace_fields(load_recipe(experiment.recipe), changes)
    began = cpu_seconds()
    with tempfile.TemporaryDirectory() as output:
        trained = Path(output) / "run"
        records = records_of(experiment, folder)
        start = cpu_seconds()
        train(
            config,
            data=records,
            tokenizer=folder,
            output=trained,
            threads=1,
            quiet=True,
            device="cpu",
        )
        seconds = cpu_seconds() - start
        numbers = measure_groups(trained, folder, experiment.tasks)
    row = {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "samples": steps * config.data.batch_size,
        "train_cpu_seconds": f"{seconds:.0f}",
        **{
            f"{task}/{metric}/{split}": f"{numbers[task, metric, split]:.4f}"
            for task, metric in experiment.metrics
            for split in SPLITS
        },
    }
    row["cpu_seconds"] = f"{cpu_seconds() - began:.0f}"
    return [row]


def measure_groups(
    model: Path, folder: Path, tasks: Mapping[str, int]
) -> dict[tuple[str, str, str], float]:
    """Evaluate a model on both splits; return values by (task, metric, split), with groups."""
    loaded = load_model(model)
    return {
        (task, metric, split): value
        for task, limit in tasks.items()
        for split in SPLITS
        for metric, value in evaluate(
            loaded, task, measured_records(folder, task, split, limit), rerank=False
        ).items()
    }


def main() -> None:
    """Train and measure all runs that have no row yet, within the budget of each experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of the data, created if needed")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--workers", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--cpu-hours", type=float, default=2.0, help="budget of an experiment")
    options = parser.parse_args()
    generate(options.data, **IMAGES, workers=options.workers)
    for name in options.experiments:
        rows = Rows(f"evidence_{name}", ("arm", "seed"))
        arms = list(EXPERIMENTS[name].arms)
        for wanted in (arms, [f"{arm}{EQUAL_TIME}" for arm in arms[1:]]):
            runs = [
                {
                    "folder": options.data,
                    "name": name,
                    "arm": arm,
                    "seed": seed,
                    "steps": steps_of(name, arm, rows.rows),
                }
                for seed in options.seeds
                for arm in wanted
            ]
            run_all(rows, runs, run, workers=options.workers, cpu_hours=options.cpu_hours)


if __name__ == "__main__":
    main()
