"""Compare each data- or width-dependent initialization of a small model with the one it replaces.

Command: fiber data scenes --output runs/scenes --images 24000
         python benches/starts.py runs/scenes
Rows: results/starts.csv, one per run. Runs that have a row are skipped.

All runs use the models and rates of the demo's recipes. "off" leaves out one method that a model
with `weight_start` "fan_in" calls; the published models never call it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from experiments import Rows, cpu_seconds, measure, run_all

from fiber.checkpoints.model_dir import load_model
from fiber.config_io import replace_fields
from fiber.models.fiber.detector import GroundingHead
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.fiber.pyramid import FeaturePyramid
from fiber.training.config.run import load_recipe
from fiber.training.train import train


class Start(NamedTuple):
    """An initialization, and the run and metric that show what it is for."""

    owner: type
    method: str
    recipe: str
    changes: Mapping[str, Any]
    task: str
    records: int
    metric: str


_ITC_ONLY = {
    "tasks.question.share": 0,
    "tasks.image_text.itm": 0.0,
    "tasks.image_text.mlm": 0.0,
    "train.steps": 300,
}
_RETRIEVAL = ("retrieval", 1000, "text_to_image_recall_at_10")
_QUESTIONS = {"tasks.image_text.share": 0, "train.steps": 300}
_FINE = {"train.steps": 450}
STARTS = {
    "embeddings": Start(FiberImageText, "init_embeddings", "scenes_coarse", _ITC_ONLY, *_RETRIEVAL),
    "answers": Start(
        FiberImageText,
        "init_answer_priors",
        "scenes_coarse",
        _QUESTIONS,
        *("vqa", 1500, "accuracy"),
    ),
    "pyramid": Start(
        FeaturePyramid, "init_identity", "scenes_fine", _FINE, "flickr", 300, "any_recall_at_1"
    ),
    "token logits": Start(
        GroundingHead, "init_at_prior", "scenes_fine", _FINE, "flickr", 300, "any_recall_at_1"
    ),
}


def run(folder: Path, start: str, arm: str, seed: int) -> list[dict[str, Any]]:
    """Train and evaluate one run with ("on") or without ("off") an initialization."""
    began = cpu_seconds()
    chosen = STARTS[start]
    changes = {"train.seed": seed, "train.checkpoint_every": 0, **chosen.changes}
    config = replace_fields(load_recipe(chosen.recipe), changes)
    off = mock.patch.object(chosen.owner, chosen.method, lambda *_: None)
    with tempfile.TemporaryDirectory() as output, off if arm == "off" else nullcontext():
        trained = Path(output) / "run"
        train(config, data=folder, output=trained, threads=1, quiet=True, device="cpu")
        numbers = measure(load_model(trained), folder, {chosen.task: chosen.records})
    return [
        {
            "start": start,
            "arm": arm,
            "seed": seed,
            "steps": config.train.steps,
            "cpu_seconds": f"{cpu_seconds() - began:.0f}",
            "metric": f"{chosen.task}/{chosen.metric}",
            "val": f"{numbers[chosen.task, 'val', chosen.metric]:.4f}",
            "novel": f"{numbers[chosen.task, 'novel', chosen.metric]:.4f}",
        }
    ]


def main() -> None:
    """Make all runs that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="directory of scenes")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--cpu-hours", type=float, default=2.0, help="budget of all rows")
    options = parser.parse_args()
    runs = [
        {"folder": options.data, "start": start, "arm": arm, "seed": seed}
        for seed in options.seeds
        for start in options.starts
        for arm in ("on", "off")
    ]
    rows = Rows("starts", ("start", "arm", "seed"))
    run_all(rows, runs, run, workers=options.workers, cpu_hours=options.cpu_hours)


if __name__ == "__main__":
    main()
