"""Ablate coarse pre-training: without fusion, with half of it, or without one objective.

Command: fiber data scenes --output runs/scenes --images 24000
         python benches/ablate.py runs/scenes
Rows: results/ablate.csv, one per run. Runs that have a row are skipped. There are eighteen runs of
440 steps; --cpu-hours limits the total, after which no run is started.

An objective that is left out of the loss is still evaluated, with an untrained head.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import Rows, cpu_seconds, measure, run_all

from fiber.checkpoints.model_dir import load_model
from fiber.config_io import replace_fields
from fiber.training.config.run import RunConfig, load_recipe
from fiber.training.train import train

#: Changes of the recipe by arm. Its model fuses the last four blocks.
ARMS: dict[str, Mapping[str, Any]] = {
    "whole": {},
    "fusion in 2 blocks": {"model.fusion.num_fused_layers": 2},
    "no fusion": {"model.fusion.num_fused_layers": 0},
    "without ITC": {"tasks.image_text.itc": 0.0},
    "without ITM": {"tasks.image_text.itm": 0.0},
    "without MLM": {"tasks.image_text.mlm": 0.0},
}
#: Evaluated tasks, with the number of records per split.
MEASURED = {"retrieval": 1000, "matching": 300, "masked_words": 400, "vqa": 1500}
#: Task and metric of the columns.
SHOWN = (
    ("retrieval", "text_to_image_recall_at_10"),
    ("retrieval", "image_to_text_recall_at_10"),
    ("matching", "accuracy"),
    ("masked_words", "accuracy"),
    ("vqa", "accuracy"),
)


def config_of(arm: str, seed: int) -> RunConfig:
    """Return the recipe of the demo's coarse stage with the changes of the arm."""
    changes = {"train.seed": seed, "train.checkpoint_every": 0, **ARMS[arm]}
    return replace_fields(load_recipe("scenes_coarse"), changes)


def ablate(folder: Path, arm: str, seed: int) -> list[dict[str, Any]]:
    """Train and evaluate one run; return its row."""
    began = cpu_seconds()
    config = config_of(arm, seed)
    with tempfile.TemporaryDirectory() as output:
        run = Path(output) / "run"
        train(config, data=folder, output=run, threads=1, quiet=True)
        numbers = measure(load_model(run), folder, MEASURED)
    row = {
        "arm": arm,
        "seed": seed,
        "steps": config.train.steps,
        "cpu_seconds": f"{cpu_seconds() - began:.0f}",
        **{
            f"{task}/{metric}/{split}": f"{numbers[task, split, metric]:.4f}"
            for task, metric in SHOWN
            for split in ("val", "novel")
        },
    }
    return [row]


def main() -> None:
    """Train and measure all runs that have no row yet, within the budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="directory of scenes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--cpu-hours", type=float, default=3.0, help="budget of all rows")
    options = parser.parse_args()
    rows = Rows("ablate", ("arm", "seed"))
    runs = [
        {"folder": options.data, "arm": arm, "seed": seed} for seed in options.seeds for arm in ARMS
    ]
    run_all(rows, runs, ablate, workers=options.workers, cpu_hours=options.cpu_hours)


if __name__ == "__main__":
    main()
