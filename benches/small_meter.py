"""Train the small METER with and without images, and compare both with guesses from texts.

Command: fiber data scenes --output runs/scenes --images 24000
         python benches/small_meter.py runs/scenes
         python benches/results_page.py
Rows: results/small_meter.csv, one per run. Runs that have a row are skipped.

One run trains ITM, MLM, VQA and NLVR2 in turn, by the recipe `small_meter`. In "text" runs every
image is gray, in training and in evaluation. "counted" guesses what is most frequent in training
for the question or statement, and a random image for a caption.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from experiments import (
    SPLITS,
    Inputs,
    Rows,
    SeenInputs,
    cpu_seconds,
    measured_records,
    run_all,
)

from fiber.checkpoints.model_dir import load_model
from fiber.data.record import Record
from fiber.evaluation import baselines
from fiber.evaluation.evaluate import evaluate
from fiber.evaluation.tasks import reader_of
from fiber.training.config.run import RunConfig, load_recipe
from fiber.training.train import train

#: Task of the run whose records a task of the evaluation has.
SOURCES = {"image_text": "retrieval", "question": "vqa", "reasoning": "nlvr2"}
#: Evaluated records by task.
RECORDS = {"vqa": 1500, "nlvr2": 1000, "retrieval": 500}
#: Metrics of the rows by task.
METRICS = {
    "vqa": "accuracy",
    "nlvr2": "accuracy",
    "retrieval": "text_to_image_recall_at_10",
}
BOTH, TEXT, COUNTED = "both", "text", "counted"
SEEDS = (0, 1, 2)


def config_of(seed: int) -> RunConfig:
    """Return the recipe with this seed. Its last step is measured."""
    recipe = load_recipe("small_meter")
    steps = dataclasses.replace(recipe.train, seed=seed, checkpoint_every=0)
    return dataclasses.replace(recipe, train=steps)


def train_and_measure(folder: Path, inputs: Inputs, seed: int) -> dict[tuple[str, str], float]:
    """Train one run; return the metric of each (task, split)."""
    data = {
        name: SeenInputs(reader_of(task)(folder, "train"), inputs) for name, task in SOURCES.items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "run"
        train(
            config_of(seed),
            data=data,
            tokenizer=folder,
            output=output,
            threads=1,
            quiet=True,
            device="cpu",
        )
        model = load_model(output)
    found = {}
    for task, metric in METRICS.items():
        for split in SPLITS:
            records = SeenInputs(measured_records(folder, task, split, RECORDS[task]), inputs)
            found[task, split] = evaluate(model, task, records)[metric]
    return found


def guess(folder: Path) -> dict[tuple[str, str], float]:
    """Return the metric of each (task, split) by counting the training split."""
    found = {}
    training = {task: list(_all(reader_of(task)(folder, "train"))) for task in ("vqa", "nlvr2")}
    for split in SPLITS:
        asked = {task: measured_records(folder, task, split, RECORDS[task]) for task in METRICS}
        found["vqa", split] = baselines.vqa_blind(
            [r.text for r in training["vqa"]],
            [r.answers or {} for r in training["vqa"]],
            [r.text for r in asked["vqa"]],
            [r.answers or {} for r in asked["vqa"]],
        )[METRICS["vqa"]]
        found["nlvr2", split] = baselines.statement_blind(
            [r.text for r in training["nlvr2"]],
            [bool(r.truth) for r in training["nlvr2"]],
            [r.text for r in asked["nlvr2"]],
            [bool(r.truth) for r in asked["nlvr2"]],
        )[METRICS["nlvr2"]]
        captions = asked["retrieval"]
        images = {image: at for at, image in enumerate(dict.fromkeys(r.image_id for r in captions))}
        chance = baselines.retrieval_chance([images[r.image_id] for r in captions], len(images))
        # METER ranks by ITM, whose metrics have a prefix.
        found["retrieval", split] = chance[METRICS["retrieval"]]
    return found


def _all(records: Any) -> list[Record]:
    return [records[index] for index in range(len(records))]


def run(folder: Path, inputs: str, seed: int) -> list[dict[str, Any]]:
    """Train and evaluate a run, or guess; return its row."""
    began = cpu_seconds()
    if inputs == COUNTED:
        found, steps = guess(folder), 0
    else:
        assert inputs in (BOTH, TEXT)
        found, steps = train_and_measure(folder, inputs, seed), config_of(seed).train.steps
    row = {"inputs": inputs, "seed": seed, "steps": steps}
    for task, metric in METRICS.items():
        for split in SPLITS:
            row[f"{task}/{metric}/{split}"] = f"{found[task, split]:.4f}"
    return [{**row, "cpu_seconds": f"{cpu_seconds() - began:.0f}"}]


def main() -> None:
    """Train and measure all runs that have no row yet, within the budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="directory of scenes")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--workers", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--cpu-hours", type=float, default=3.0, help="budget of all rows")
    options = parser.parse_args()
    runs = [{"inputs": COUNTED, "seed": 0}] + [
        {"inputs": inputs, "seed": seed} for seed in options.seeds for inputs in (BOTH, TEXT)
    ]
    run_all(
        Rows("small_meter", ("inputs", "seed")),
        [{"folder": options.data, **each} for each in runs],
        run,
        workers=options.workers,
        cpu_hours=options.cpu_hours,
    )


if __name__ == "__main__":
    main()
