"""Compare orders of the stages where few images have boxes and some words are in captions only.

Command: python benches/evidence_stages.py runs/evidence
         python benches/evidence_page.py
Rows: results/evidence_stages.csv, one per run. Runs that have a row are skipped. The data are those
of `evidence.py`.

Every image has captions and questions. Referring expressions with boxes are known for `BOXED`
images, which the seed chooses, and none of them names a word of `UNBOXED`. Accuracy is that on
expressions without and with these words. "captions, then boxes" is the order of the published
model, which starts from pretrained encoders. The small one does not, so another arm has boxes
before and after. Arms have the same steps of each stage that they have, except for "boxes, equal
time", which has the CPU time of the longest arm.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from evidence import COARSE_CHANGES, IMAGES
from experiments import Rows, cpu_seconds, measured_records, run_all

from fiber.checkpoints.model_dir import StoredModel, load_model
from fiber.config_io import replace_fields
from fiber.data import sources
from fiber.data.record import Record
from fiber.evaluation.box_baselines import referring_chance
from fiber.evaluation.evaluate import evaluate
from fiber.synthetic.scenes import generate
from fiber.training.config.run import load_recipe
from fiber.training.train import train

BOXES, CAPTIONS_BOXES, BOXES_CAPTIONS_BOXES = (
    "boxes",
    "captions, then boxes",
    "boxes, captions, boxes",
)
EQUAL_TIME = "boxes, equal time"
#: Steps of the stages of each arm, in their order.
ARMS: dict[str, tuple[tuple[str, int], ...]] = {
    BOXES: (("fine", 800),),
    CAPTIONS_BOXES: (("coarse", 800), ("fine", 800)),
    BOXES_CAPTIONS_BOXES: (("fine", 400), ("coarse", 800), ("fine", 400)),
}
#: Row of guesses among the objects of an image.
CHANCE = "chance"
SEEDS = (0, 1, 2)
#: Number of images with boxes.
BOXED = 300
#: Words that no expression with a known box has.
UNBOXED = {"color": ("cyan", "purple"), "noun": ("diamond", "heart")}
#: Evaluated expressions of val, questions, captions for retrieval, and pairs of matching.
RECORDS = {"refcoco": 5000, "vqa": 1500, "retrieval": 1000, "matching": 300}
#: Metrics of the coarse stage by task.
COARSE = {
    "retrieval": "text_to_image_recall_at_10",
    "vqa": "accuracy",
    "matching": "accuracy",
}


def part_of(record: Record) -> str:
    """Return "unboxed" if the expression has one of the words that have no boxes, else "boxed"."""
    words = set(record.text.split())
    return "unboxed" if words & {word for own in UNBOXED.values() for word in own} else "boxed"


def boxed_records(folder: Path, seed: int) -> list[Record]:
    """Read the expressions of the images that have boxes."""
    read = sources.referring(folder, "train")
    everything = [read[index] for index in range(len(read))]
    images = sorted({record.image_id for record in everything})
    chosen = set(random.Random(seed).sample(images, min(BOXED, len(images))))
    return [r for r in everything if r.image_id in chosen and part_of(r) == "boxed"]


def asked_groups(folder: Path) -> dict[str, list[Record]]:
    """Read the evaluated expressions by column of the rows.

    Those of the kinds color and noun are also columns of their own: of the unboxed ones, those
    whose color or noun is unboxed.
    """
    found: dict[str, list[Record]] = {}
    for record in measured_records(folder, "refcoco", "val", RECORDS["refcoco"]):
        part = part_of(record)
        found.setdefault(part, []).append(record)
        words = UNBOXED.get(record.group, ())
        if words and (part == "boxed" or set(record.text.split()) & set(words)):
            found.setdefault(f"{part}/{record.group}", []).append(record)
    return dict(sorted(found.items()))


def train_stages(
    folder: Path, output: Path, stages: Sequence[tuple[str, int]], seed: int
) -> list[Path]:
    """Train the stages one after the other; return their folders."""
    boxes = boxed_records(folder, seed)
    runs: list[Path] = []
    for stage, steps in stages:
        init = runs[-1] if runs else None
        runs.append(output / f"{len(runs)}-{stage}")
        changes = {"train.steps": steps, "train.seed": seed, "train.checkpoint_every": 0}
        if stage == "coarse":
            changes |= COARSE_CHANGES
        train(
            replace_fields(load_recipe(f"scenes_{stage}"), changes),
            data=folder if stage == "coarse" else boxes,
            tokenizer=folder if stage == "fine" and init is None else None,
            init=init,
            output=runs[-1],
            threads=1,
            quiet=True,
            device="cpu",
        )
    return runs


def measure_fine(model: StoredModel, folder: Path) -> dict[str, float]:
    """Return the accuracy of each group of expressions."""
    return {
        name: evaluate(model, "refcoco", records)["accuracy_at_1"]
        for name, records in asked_groups(folder).items()
    }


def measure_coarse(model: StoredModel, folder: Path) -> dict[str, float]:
    """Return what the coarse stage has learned."""
    return {
        task: evaluate(model, task, measured_records(folder, task, "val", RECORDS[task]))[metric]
        for task, metric in COARSE.items()
    }


def guess(folder: Path) -> dict[str, float]:
    """Return the accuracy of a guess among the objects of the image."""
    objects = {r.image_id: list(r.boxes_xyxy) for r in sources.detection(folder, "val")}
    return {
        name: referring_chance(
            [objects[record.image_id] for record in records],
            [record.boxes_xyxy[0] for record in records],
        )["accuracy_at_1"]
        for name, records in asked_groups(folder).items()
    }


def run(
    folder: Path, arm: str, seed: int, stages: Sequence[tuple[str, int]]
) -> list[dict[str, Any]]:
    """Train and evaluate one arm, or guess; return its row."""
    began = cpu_seconds()
    seconds, coarse = 0.0, {}
    if arm == CHANCE:
        fine = guess(folder)
    else:
        with tempfile.TemporaryDirectory() as output:
            runs = train_stages(folder, Path(output), stages, seed)
            seconds = cpu_seconds() - began
            fine = measure_fine(load_model(runs[-1]), folder)
            for path in runs:
                if path.name.endswith("coarse"):
                    coarse = measure_coarse(load_model(path), folder)
    row = {
        "arm": arm,
        "seed": seed,
        "stages": ", ".join(f"{stage} {steps}" for stage, steps in stages),
        "train_cpu_seconds": f"{seconds:.0f}",
        **{name: f"{value:.4f}" for name, value in fine.items()},
        **{f"coarse/{task}": f"{coarse[task]:.4f}" if coarse else "" for task in COARSE},
        "cpu_seconds": f"{cpu_seconds() - began:.0f}",
    }
    return [row]


def equal_time_steps(rows: Sequence[Mapping[str, str]]) -> int:
    """Return the fine steps that take the CPU time of the longest arm."""
    times = {
        arm: mean(float(row["train_cpu_seconds"]) for row in rows if row["arm"] == arm)
        for arm in ARMS
    }
    [(_, steps)] = ARMS[BOXES]
    # Rounded, so that small differences of the pace do not change the run.
    return round(steps * max(times.values()) / times[BOXES] / 20) * 20


def main() -> None:
    """Train and measure all runs that have no row yet, within the budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of the data, created if needed")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--workers", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--cpu-hours", type=float, default=2.0, help="budget of all rows")
    options = parser.parse_args()
    generate(options.data, **IMAGES, workers=options.workers)
    rows = Rows("evidence_stages", ("arm", "seed"))

    def finish(arms: Mapping[str, Sequence[tuple[str, int]]], seeds: Sequence[int]) -> None:
        runs = [
            {"folder": options.data, "arm": arm, "seed": seed, "stages": stages}
            for seed in seeds
            for arm, stages in arms.items()
        ]
        run_all(rows, runs, run, workers=options.workers, cpu_hours=options.cpu_hours)

    finish({CHANCE: ()}, [0])
    finish(ARMS, options.seeds)
    finish({EQUAL_TIME: (("fine", equal_time_steps(rows.rows)),)}, options.seeds)


if __name__ == "__main__":
    main()
