"""Compare answers to questions that bind color and shape, with fusion and without it.

Command: python benches/evidence_binding.py runs/evidence
         python benches/evidence_page.py
Rows: results/evidence_binding.csv, one per run. Runs that have a row are skipped. Data, fine stage
and arms are those of `evidence.py`. The coarse stage is that of the demo, which asks about color
and shape first and is long enough to learn which object a question is about.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evidence import ARMS, EQUAL_TIME, IMAGES, SEEDS, TASKS, steps_of, train_arm
from evidence import STEPS as STEPS_OF_EVIDENCE
from experiments import SPLITS, Rows, cpu_seconds, measured_records, run_all

from fiber.checkpoints.model_dir import load_model
from fiber.demo.plan import find_plan
from fiber.evaluation.evaluate import evaluate
from fiber.synthetic.scenes import generate

FUSED, _, NONE = ARMS
#: The coarse stage of the demo, without its checkpoints.
COARSE = {
    name: value
    for name, value in find_plan("scenes", "default").runs["coarse"].items()
    if not name.startswith("train.")
}
STEPS = {**STEPS_OF_EVIDENCE, "coarse": 720}
METRICS = ("color/accuracy", "shape/accuracy", "exists/accuracy", "accuracy")


def run(folder: Path, arm: str, seed: int, steps: Mapping[str, int]) -> list[dict[str, Any]]:
    """Train and evaluate one arm; return its row."""
    began = cpu_seconds()
    with tempfile.TemporaryDirectory() as output:
        fused = ARMS[arm.removesuffix(EQUAL_TIME)]
        seconds = train_arm(folder, Path(output), fused, seed, steps, COARSE)
        model = load_model(Path(output) / "coarse")
    row = {
        "arm": arm,
        "seed": seed,
        **{f"{stage}_steps": count for stage, count in steps.items()},
        **{f"{stage}_cpu_seconds": f"{value:.0f}" for stage, value in seconds.items()},
    }
    for split in SPLITS:
        records = measured_records(folder, "vqa", split, TASKS["vqa"][0])
        found = evaluate(model, "vqa", records)
        row |= {f"vqa/{metric}/{split}": f"{found[metric]:.4f}" for metric in METRICS}
    row["cpu_seconds"] = f"{cpu_seconds() - began:.0f}"
    return [row]


def main() -> None:
    """Train and measure all runs that have no row yet, within the budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of the data, created if needed")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--workers", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--cpu-hours", type=float, default=2.0, help="budget of all rows")
    options = parser.parse_args()
    generate(options.data, **IMAGES, workers=options.workers)
    rows = Rows("evidence_binding", ("arm", "seed"))
    for arms in ((FUSED, NONE), (f"{NONE}{EQUAL_TIME}",)):
        runs = [
            {
                "folder": options.data,
                "arm": arm,
                "seed": seed,
                "steps": steps_of(arm, rows.rows, STEPS),
            }
            for seed in options.seeds
            for arm in arms
        ]
        run_all(rows, runs, run, workers=options.workers, cpu_hours=options.cpu_hours)


if __name__ == "__main__":
    main()
