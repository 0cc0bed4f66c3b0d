"""Fine-tune each image-level task from one coarse checkpoint, with blind baselines.

Command: fiber data scenes --output runs/scenes --images 24000
         fiber data stamps --output runs/stamps --images 10000
         python benches/finetune.py runs/scenes runs/stamps
Rows: results/finetune.csv, one per metric of a run. Runs that have rows are skipped.

One coarse model is trained per dataset, with the demo's recipe, more steps and random ITM
negatives, and from it one task at a time. The same run is trained on texts alone (every image gray)
and, for questions and statements, on images alone. Other baselines: chance, and the most frequent
answers of the training split.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from experiments import (
    SPLITS,
    Inputs,
    Place,
    Rows,
    SeenInputs,
    measure,
    measured_records,
    use_one_thread,
)

from fiber.checkpoints.model_dir import load_model
from fiber.config_io import replace_fields
from fiber.data.record import Record
from fiber.evaluation import baselines
from fiber.evaluation.tasks import reader_of
from fiber.training.config.run import RunConfig, load_recipe
from fiber.training.train import train

KNOWN_BY = ("data", "task", "inputs", "seed")
#: Changes of the coarse recipe. ITM negatives are random: those chosen by similarity are too hard
#: to learn from the start.
COARSE: dict[str, Any] = {
    "train.steps": 1500,
    "tasks.question.share": 1,
    "tasks.image_text.itm_negatives": "random",
}
#: Changes by dataset: stamps have hundreds of answers.
COARSE_OF: dict[str, dict[str, Any]] = {
    "scenes": {},
    "stamps": {"model.image_text.num_answers": 512, "train.steps": 500},
}
#: Fraction of a recipe's steps by dataset: hundreds of nouns are not learned in minutes from
#: 10,000 images, and more steps of that size would not change it.
SHARE_OF_STEPS = {"scenes": 1.0, "stamps": 0.3}
#: Rows without a model.
CHANCE, COUNTED = "chance", "counted in training"


@dataclass(frozen=True, kw_only=True)
class Task:
    """Recipe and evaluation of a task."""

    #: Name of the recipe.
    recipe: str
    #: Number of evaluated records per split (images for "caption").
    records: int
    #: Inputs of the blind runs.
    without: tuple[Inputs, ...] = ()


#: By task of `fiber.evaluate`.
FINETUNED = {
    "vqa": Task(recipe="small_vqa", records=1500, without=("text", "picture")),
    "nlvr2": Task(recipe="small_nlvr2", records=1000, without=("text", "picture")),
    "retrieval": Task(recipe="small_retrieval", records=1000),
    "caption": Task(recipe="small_caption", records=200, without=("text",)),
}


@dataclass(frozen=True, kw_only=True)
class TaskPlace(Place):
    """Where one dataset is, and the model that every task starts from."""

    @property
    def coarse(self) -> Path:
        """The model that every task starts from."""
        return self.runs / "coarse"

    @property
    def coarse_config(self) -> RunConfig:
        """How that model is trained."""
        return replace_fields(load_recipe("scenes_coarse"), {**COARSE, **COARSE_OF[self.kind]})


def train_coarse(place: TaskPlace) -> None:
    """Train the model that every task starts from, or what is left of it."""
    use_one_thread()
    train(
        place.coarse_config,
        data=place.data,
        output=place.coarse,
        resume=True,
        device="cpu",
        threads=1,
        quiet=True,
    )


def config_of(task: Task, seed: int, kind: str) -> RunConfig:
    """The task's recipe with this seed. Its last step is measured: val chooses nothing here."""
    recipe = load_recipe(task.recipe)
    changes = {
        "train.seed": seed,
        "train.steps": round(SHARE_OF_STEPS[kind] * recipe.train.steps),
        "train.checkpoint_every": 0,
        "validation.task": None,
    }
    return replace_fields(recipe, changes)


def finetune(place: TaskPlace, measured: str, inputs: Inputs, seed: int) -> list[dict]:
    """Train one run and measure it: a row for each number."""
    use_one_thread()
    task = FINETUNED[measured]
    config = config_of(task, seed, place.kind)
    (name,) = config.tasks.active()
    reader = reader_of(measured)
    output = place.runs / f"{measured}-{inputs}-{seed}"
    began = time.monotonic()
    train(
        config,
        data={name: SeenInputs(reader(place.data, "train"), inputs)},
        output=output,
        init=place.coarse,
        resume=True,
        threads=1,
        quiet=True,
    )
    seconds = time.monotonic() - began
    numbers = measure(load_model(output), place.data, {measured: task.records}, inputs=inputs)
    return [
        {
            "data": place.kind,
            "task": measured,
            "inputs": inputs,
            "seed": seed,
            "split": split,
            "metric": metric,
            "value": f"{value:.4f}",
            "coarse_steps": place.coarse_config.train.steps,
            "steps": config.train.steps,
            "batch_size": config.data.batch_size,
            "train_seconds": f"{seconds:.0f}",
        }
        for (_, split, metric), value in numbers.items()
    ]


def guess(place: TaskPlace, measured: str) -> list[dict]:
    """Work out what chance and counting reach: rows like those of a run."""
    rows: list[dict] = []
    reader = reader_of(measured)
    training = reader(place.data, "train")
    for split in SPLITS:
        records = measured_records(place.data, measured, split, FINETUNED[measured].records)
        for inputs, numbers in _guesses(measured, training, records, place.coarse).items():
            rows += [
                {
                    "data": place.kind,
                    "task": measured,
                    "inputs": inputs,
                    "seed": "",
                    "split": split,
                    "metric": metric,
                    "value": f"{value:.4f}",
                    "coarse_steps": 0,
                    "steps": 0,
                    "batch_size": 0,
                    "train_seconds": 0,
                }
                for metric, value in numbers.items()
            ]
    return rows


def _guesses(
    measured: str, training: Any, records: list[Record], coarse: Path
) -> dict[str, dict[str, float]]:
    if measured == "retrieval":
        images = {image: at for at, image in enumerate(dict.fromkeys(r.image_id for r in records))}
        owners = [images[record.image_id] for record in records]
        return {CHANCE: baselines.retrieval_chance(owners, len(images))}
    if measured == "caption":
        references: dict[str, list[str]] = {}
        for record in records:
            references.setdefault(record.image_id, []).append(record.text)
        counted = baselines.caption_blind((r.text for r in training), list(references.values()))
        return {COUNTED: counted}
    if measured == "nlvr2":
        texts, truths = [r.text for r in records], [bool(r.truth) for r in records]
        counted = baselines.statement_blind(
            [r.text for r in training], [bool(r.truth) for r in training], texts, truths
        )
        return {CHANCE: baselines.statement_chance(texts), COUNTED: counted}
    answers, scores = load_model(coarse).answers, [r.answers or {} for r in records]
    counted = baselines.vqa_blind(
        [r.text for r in training],
        [r.answers or {} for r in training],
        [r.text for r in records],
        scores,
    )
    return {CHANCE: baselines.vqa_chance(answers, scores), COUNTED: counted}


def wanted(seeds: list[int]) -> Iterator[dict[str, Any]]:
    """List the runs, those with both inputs first; of those without one, the first seed."""
    for seed in seeds:
        for measured in FINETUNED:
            yield {"task": measured, "inputs": "both", "seed": seed}
    for measured, task in FINETUNED.items():
        for inputs in task.without:
            yield {"task": measured, "inputs": inputs, "seed": seeds[0]}


def main() -> None:
    """Train and measure all that has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, nargs="+", help="directories of scenes or stamps")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/finetune"), help="directory of all runs"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=tuple(FINETUNED), default=list(FINETUNED))
    parser.add_argument("--workers", type=int, default=2, help="parallel runs, one thread each")
    options = parser.parse_args()
    places = [TaskPlace(data=data, runs=options.output / data.name) for data in options.data]
    use_one_thread()
    rows = Rows("finetune", KNOWN_BY)
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(train_coarse, places))
        waiting = {}
        for place in places:
            for task in options.tasks:
                known = {"data": place.kind, "task": task, "inputs": COUNTED, "seed": ""}
                if not rows.has(**known) and not rows.has(**{**known, "inputs": CHANCE}):
                    rows.add(guess(place, task))
            for run in wanted(options.seeds):
                known = {"data": place.kind, **run}
                if run["task"] in options.tasks and not rows.has(**known):
                    waiting[pool.submit(finetune, place, *run.values())] = known
        for number, future in enumerate(as_completed(waiting), 1):
            rows.add(future.result())
            name = " ".join(str(part) for part in waiting[future].values())
            print(f"{number} of {len(waiting)}: {name}", flush=True)


if __name__ == "__main__":
    main()
