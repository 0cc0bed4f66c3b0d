"""Compare what ways of training on new classes reach on these, and what is left of the old ones.

Command: python benches/keep.py runs/keep
Rows: results/keep.csv, one per way and seed. Ways that have a row are skipped. Prints the table of
docs/keep.md, which `tests/benches/test_keep.py` compares with the rows.

Every run starts from the fine-stage model in the package, and trains the recipe `small_detection`
for the same number of steps on two shapes that scenes lack. "full" trains all weights, "frozen" all
but those of the backbone, "lora" adapters of rank 8, "keep" all weights on new and old boxes
(`--keep`). "merge" runs are `fiber.merge` of the initial model and a run, with weight .5. "start"
is the initial model. New: AP of the new classes. Old: AP of the classes of scenes, and accuracy of
referring expressions, of which no run has seen any.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import Rows

import fiber
from fiber.config_io import replace_fields
from fiber.synthetic import scenes

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.lora_gate import detection_config, write_new_shapes

BASE = "scenes/fine"
STEPS = 120
#: Scenes to keep, and to evaluate on.
TRAIN, VAL = 600, 200
#: Changes of the recipe, by way.
WAYS: dict[str, Mapping[str, Any]] = {
    "full": {},
    "frozen": {"optim.frozen": ("backbone",)},
    "lora": {"lora.r": 8},
    "keep": {},
}
#: Ways whose result is merged with the initial model, and the weight of the result.
MERGED, WEIGHT = ("full", "keep"), 0.5


#: Rows of the table, in order, and its columns.
NAMES = {
    "start": "the initial model",
    "full": "full training",
    "frozen": "backbone frozen (`optim.frozen=backbone`)",
    "lora": "LoRA (`--lora r=8`)",
    "merge full": "full training, merged at 0.5",
    "keep": "`--keep`",
    "merge keep": "`--keep`, merged at 0.5",
}
COLUMNS = {"new_ap": "new AP", "old_ap": "old AP", "old_expressions": "old expressions"}


def train(work: Path, way: str, seed: int) -> Path:
    """Train by one of the ways, unless the run is finished; return its folder."""
    changes = {"train.steps": STEPS, "train.checkpoint_every": 0, "validation.task": None}
    config = replace_fields(
        detection_config(), {**changes, "train.seed": seed, "data.batch_size": 32, **WAYS[way]}
    )
    kept: dict[str, Any] = {"keep": work / "old"} if way == "keep" else {}
    output = work / f"{way}-{seed}"
    options = {"data": work / "new", "output": output, "init": BASE, **kept}
    fiber.train(config, quiet=True, resume=True, **options)
    return output


def score(model: Any, work: Path) -> dict[str, float]:
    """Evaluate a model on the new classes, and on the old classes and expressions."""
    new = fiber.evaluate(model, "coco", data=work / "new", split="valid")
    old = fiber.evaluate(model, "coco", data=work / "old")
    expressions = fiber.evaluate(model, "refcoco", data=work / "old")
    return {
        "new_ap": new["ap"],
        "old_ap": old["ap"],
        "old_expressions": expressions["accuracy_at_1"],
    }


def measured(work: Path, way: str, seed: int) -> dict[str, Any]:
    """Return the row of a way, training it first if it must be."""
    if way == "start":
        model = fiber.load(BASE)
    elif way.startswith("merge "):
        run = train(work, way.removeprefix("merge "), seed)
        model = fiber.merge(BASE, run, WEIGHT)
    else:
        model = fiber.load(train(work, way, seed))
    row: dict[str, Any] = {"way": way, "seed": seed, "steps": 0 if way == "start" else STEPS}
    return row | {name: f"{value:.4f}" for name, value in score(model, work).items()}


def table(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield the lines of the table: means over seeds, and deviations if there are several."""
    yield f"| training | {' | '.join(COLUMNS.values())} |"
    yield "|---|" + "---|" * len(COLUMNS)
    for way, name in NAMES.items():
        found = [row for row in rows if row["way"] == way]
        if found:
            columns = ([float(row[column]) for row in found] for column in COLUMNS)
            yield f"| {name} | {' | '.join(map(_cell, columns))} |"


def _cell(values: Sequence[float]) -> str:
    if len(set(values)) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder for data and runs; runs in it are reused")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    ways = ("start", *WAYS, *(f"merge {way}" for way in MERGED))
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if not (options.work / "new").exists():
        write_new_shapes(options.work / "new")
    if not (options.work / "old").exists():
        scenes.generate(options.work / "old", train=TRAIN, val=VAL, novel=8)
    rows = Rows("keep", ("way", "seed"))
    for seed in options.seeds:
        for way in options.ways:
            if not rows.has(way=way, seed=seed):
                rows.add([measured(options.work, way, seed)])
    print(*table(rows.rows), sep="\n")


if __name__ == "__main__":
    main()
