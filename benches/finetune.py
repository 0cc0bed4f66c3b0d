"""What each image-level task learns from one coarse checkpoint, beside models that miss an input.

Command: fiber demo; fiber demo --data stamps
         python benches/finetune.py runs/demo runs/demo-stamps
Rows: results/finetune.csv, one for each number of each run; `results_page.py` makes the tables.

The coarse model of a finished demo is trained on one task at a time. The same run is trained on the
texts alone (every picture grey) and, for questions and statements, on the pictures alone. Chance
and what counting in the training split reaches stand beside them. A row is not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from experiments import (
    SPLITS,
    Inputs,
    Rows,
    SeenInputs,
    measure,
    measured_records,
    use_one_thread,
)

from fiber.data.records import Record
from fiber.fields import replace_fields
from fiber.files import read_json
from fiber.metrics import baselines
from fiber.training.checkpoint import load_model
from fiber.training.evaluate import TASKS
from fiber.training.loop import train
from fiber.training.run_config import RunConfig
from fiber.training.run_folder import RunFolder

KNOWN_BY = ("data", "task", "inputs", "seed")
#: Rows that no model was trained for.
CHANCE, COUNTED = "chance", "counted in training"


@dataclass(frozen=True, kw_only=True)
class Task:
    """How one task is trained and measured."""

    #: Its name among a run's tasks.
    name: str
    head: str
    steps: int
    batch_size: int
    #: Records (pictures of "caption") of a split that are measured.
    records: int
    #: Inputs that are taken away in other runs.
    without: tuple[Inputs, ...] = ()
    #: Other fields of the run.
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


#: By the name of what is measured.
FINETUNED = {
    "vqa": Task(
        name="question",
        head="vqa",
        steps=400,
        batch_size=64,
        records=1500,
        without=("text", "picture"),
    ),
    "nlvr2": Task(
        name="reasoning",
        head="nlvr2",
        steps=400,
        batch_size=32,
        records=1000,
        without=("text", "picture"),
    ),
    "retrieval": Task(
        name="image_text",
        head="itc",
        steps=300,
        batch_size=64,
        records=1000,
        fields={"tasks.image_text.itm": 0.0, "tasks.image_text.mlm": 0.0},
    ),
    "caption": Task(
        name="caption",
        head="caption",
        steps=300,
        batch_size=64,
        records=200,
        without=("text",),
    ),
}


def config_of(task: Task, demo: Path, seed: int) -> RunConfig:
    """The demo's coarse run with one task, one head and a tenth of the steps to warm up."""
    coarse = RunFolder(path=demo / "coarse").stored_config()
    if coarse is None:
        raise FileNotFoundError(f"{demo} holds no finished demo: coarse/config.json is missing")
    others = {f"tasks.{name}.share": 0 for name in coarse.tasks.active() if name != task.name}
    return replace_fields(
        coarse,
        {
            f"tasks.{task.name}.share": 1,
            **others,
            "model.image_text.heads": (task.head,),
            "data.batch_size": task.batch_size,
            "optim.lr": 3e-4,
            "optim.warmup_fraction": 0.1,
            "train.steps": task.steps,
            "train.checkpoint_every": 0,
            "train.seed": seed,
            **task.fields,
        },
    )


def finetune(demo: Path, data: str, measured: str, inputs: Inputs, seed: int) -> list[dict]:
    """Train one run and measure it: a row for each number."""
    use_one_thread()
    task, folder = FINETUNED[measured], demo / "data"
    _, reader, _ = TASKS[measured]
    output = demo / "finetuned" / f"{measured}-{inputs}-{seed}"
    began = time.monotonic()
    train(
        config_of(task, demo, seed),
        data={task.name: SeenInputs(reader(folder, "train"), inputs)},
        output=output,
        init=demo / "coarse",
        resume=True,
        threads=1,
        quiet=True,
    )
    seconds = time.monotonic() - began
    numbers = measure(load_model(output), folder, {measured: task.records}, inputs=inputs)
    return [
        {
            "data": data,
            "task": measured,
            "inputs": inputs,
            "seed": seed,
            "split": split,
            "metric": metric,
            "value": f"{value:.4f}",
            "steps": task.steps,
            "batch_size": task.batch_size,
            "train_seconds": f"{seconds:.0f}",
        }
        for (_, split, metric), value in numbers.items()
    ]


def guess(demo: Path, data: str, measured: str) -> list[dict]:
    """Work out what chance and counting reach: rows like those of a run."""
    folder, rows = demo / "data", []
    _, reader, _ = TASKS[measured]
    training = reader(folder, "train")
    for split in SPLITS:
        records = measured_records(folder, measured, split, FINETUNED[measured].records)
        for inputs, numbers in _guesses(measured, training, records, demo).items():
            rows += [
                {
                    "data": data,
                    "task": measured,
                    "inputs": inputs,
                    "seed": "",
                    "split": split,
                    "metric": metric,
                    "value": f"{value:.4f}",
                    "steps": 0,
                    "batch_size": 0,
                    "train_seconds": 0,
                }
                for metric, value in numbers.items()
            ]
    return rows


def _guesses(
    measured: str, training: Any, records: list[Record], demo: Path
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
    answers, scores = load_model(demo / "coarse").answers, [r.answers or {} for r in records]
    counted = baselines.vqa_blind(
        [r.text for r in training],
        [r.answers or {} for r in training],
        [r.text for r in records],
        scores,
    )
    return {CHANCE: baselines.vqa_chance(answers, scores), COUNTED: counted}


def wanted(data: str, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """List the runs, those with both inputs first."""
    for inputs in ("both", "text", "picture"):
        for seed in seeds:
            for measured, task in FINETUNED.items():
                if inputs == "both" or inputs in task.without:
                    yield {"data": data, "task": measured, "inputs": inputs, "seed": seed}


def main() -> None:
    """Train and measure all that has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("demos", type=Path, nargs="+", help="folders of finished demos")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=tuple(FINETUNED), default=list(FINETUNED))
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    use_one_thread()
    rows = Rows("finetune", KNOWN_BY)
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        waiting = {}
        for demo in options.demos:
            data = read_json(demo / "rows.json")["data"]
            for task in options.tasks:
                known = {"data": data, "task": task, "inputs": COUNTED, "seed": ""}
                if not rows.has(**known) and not rows.has(**{**known, "inputs": CHANCE}):
                    rows.add(guess(demo, data, task))
            for run in wanted(data, options.seeds):
                if run["task"] in options.tasks and not rows.has(**run):
                    waiting[pool.submit(finetune, demo, *run.values())] = run
        for number, future in enumerate(as_completed(waiting), 1):
            rows.add(future.result())
            name = " ".join(str(part) for part in waiting[future].values())
            print(f"{number} of {len(waiting)}: {name}", flush=True)


if __name__ == "__main__":
    main()
