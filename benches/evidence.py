"""Compare models trained with fusion in five blocks, in one block, and without fusion.

Command: python benches/evidence.py runs/evidence
         python benches/evidence_page.py
Rows: results/evidence.csv, one per run. Runs that have a row are skipped. The data are generated,
or reused if the folder contains the same.

Each arm is trained in its own way from scratch: first boxes for referring expressions, then
captions and questions, as in the demo. All arms see the same samples in the same order. "equal
time" arms train for as many more steps as take the CPU time of the arm with full fusion. Their
numbers of steps follow from the rows of the other arms, which are therefore made first.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from experiments import SPLITS, Rows, cpu_seconds, measured_records, run_all

from fiber.checkpoints.model_dir import load_model
from fiber.config_io import replace_fields
from fiber.data import sources
from fiber.data.record import Record
from fiber.evaluation.evaluate import evaluate
from fiber.synthetic.scenes import generate
from fiber.training.config.run import load_recipe
from fiber.training.train import train

#: Number of fused blocks of each arm: all of the last two stages, the last block, none. The first
#: arm is compared with the others.
ARMS = {"fusion in 5 blocks": 5, "fusion in 1 block": 1, "no fusion": 0}
EQUAL_TIME = ", equal time"
SEEDS = (0, 1, 2)
IMAGES = {"train": 30_000, "val": 1500, "novel": 1500}
#: Kinds of referring expressions to train on. With relations in a third of them, the run is long
#: enough to learn what a relation means.
KINDS = ("relation", "noun", "color")
#: Steps of the two stages.
STEPS = {"fine": 2000, "coarse": 500}
#: Changes of the recipe of the coarse stage: the mix of tasks that the rows were measured with.
COARSE_CHANGES = {"tasks.question.share": 1}
#: Evaluated records of each task per split, and its stage.
TASKS = {
    "refcoco": (5000, "fine"),
    "vqa": (5000, "coarse"),
    "matching": (600, "coarse"),
    "winoground": (400, "coarse"),
}
#: Metrics of the rows as (task, metric).
METRICS = (
    ("refcoco", "relation/accuracy_at_1"),
    ("refcoco", "noun/accuracy_at_1"),
    ("refcoco", "color/accuracy_at_1"),
    ("vqa", "accuracy"),
    ("vqa", "color/accuracy"),
    ("vqa", "shape/accuracy"),
    ("vqa", "exists/accuracy"),
    ("vqa", "relation/accuracy"),
    ("matching", "accuracy"),
    ("winoground", "text"),
    ("winoground", "image"),
    ("winoground", "group"),
)


def train_arm(
    folder: Path,
    output: Path,
    fused: int,
    seed: int,
    steps: Mapping[str, int],
    coarse: Mapping[str, Any] = COARSE_CHANGES,
) -> dict[str, float]:
    """Train both stages, with changes of the coarse recipe; return the CPU time of each."""
    common = {
        "model.fusion.num_fused_layers": fused,
        "train.seed": seed,
        "train.checkpoint_every": 0,
    }
    read = sources.referring(folder, "train")
    records = [record for record in map(read.__getitem__, range(len(read))) if _is_kind(record)]
    seconds = {}
    for stage, data in (("fine", records), ("coarse", folder)):
        changes = {**common, **(coarse if stage == "coarse" else {}), "train.steps": steps[stage]}
        config = replace_fields(load_recipe(f"scenes_{stage}"), changes)
        began = cpu_seconds()
        train(
            config,
            data=data,
            tokenizer=folder if stage == "fine" else None,
            init=None if stage == "fine" else output / "fine",
            output=output / stage,
            threads=1,
            quiet=True,
            device="cpu",
        )
        seconds[stage] = cpu_seconds() - began
    return seconds


def _is_kind(record: Record) -> bool:
    return record.group in KINDS


def run(folder: Path, arm: str, seed: int, steps: Mapping[str, int]) -> list[dict[str, Any]]:
    """Train and evaluate one arm; return its row."""
    began = cpu_seconds()
    with tempfile.TemporaryDirectory() as output:
        fused = ARMS[arm.removesuffix(EQUAL_TIME)]
        seconds = train_arm(folder, Path(output), fused, seed, steps)
        models = {stage: load_model(Path(output) / stage) for stage in STEPS}
    numbers = {
        (task, metric, split): value
        for task, (limit, stage) in TASKS.items()
        for split in SPLITS
        for metric, value in evaluate(
            models[stage], task, measured_records(folder, task, split, limit)
        ).items()
    }
    row = {
        "arm": arm,
        "seed": seed,
        **{f"{stage}_steps": count for stage, count in steps.items()},
        **{f"{stage}_cpu_seconds": f"{value:.0f}" for stage, value in seconds.items()},
    }
    for task, metric in METRICS:
        for split in SPLITS:
            # Some kinds of question are not asked on novel.
            value = numbers.get((task, metric, split))
            row[f"{task}/{metric}/{split}"] = "" if value is None else f"{value:.4f}"
    row["cpu_seconds"] = f"{cpu_seconds() - began:.0f}"
    return [row]


def steps_of(
    arm: str, rows: Sequence[Mapping[str, str]], steps: Mapping[str, int] = STEPS
) -> dict[str, int]:
    """Return the steps of both stages of an arm, which may follow from the pace of other arms."""
    if not arm.endswith(EQUAL_TIME):
        return dict(steps)
    first, own = next(iter(ARMS)), arm.removesuffix(EQUAL_TIME)

    def pace(name: str, stage: str) -> float:
        return mean(float(row[f"{stage}_cpu_seconds"]) for row in rows if row["arm"] == name)

    # Rounded, so that small differences of the pace do not change the run.
    return {
        stage: round(count * pace(first, stage) / pace(own, stage) / 20) * 20
        for stage, count in steps.items()
    }


def main() -> None:
    """Train and measure all runs that have no row yet, within the budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of the data, created if needed")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--workers", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--cpu-hours", type=float, default=6.0, help="budget of all rows")
    options = parser.parse_args()
    generate(options.data, **IMAGES, workers=options.workers)
    rows = Rows("evidence", ("arm", "seed"))
    for arms in (list(ARMS), [f"{arm}{EQUAL_TIME}" for arm in list(ARMS)[1:]]):
        runs = [
            {
                "folder": options.data,
                "arm": arm,
                "seed": seed,
                "steps": steps_of(arm, rows.rows),
            }
            for seed in options.seeds
            for arm in arms
        ]
        run_all(rows, runs, run, workers=options.workers, cpu_hours=options.cpu_hours)


if __name__ == "__main__":
    main()
