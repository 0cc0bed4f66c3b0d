"""How many boxes the coarse stage saves: the fine stage from it and from scratch, with fewer boxes.

Command: fiber data scenes --output runs/scenes --images 24000
         python benches/stamp_subset.py runs/stamp-files
         fiber data stamps --stamps runs/stamp-files --output runs/few-stamps --images 10000
         python benches/boxes.py runs/scenes runs/few-stamps
Rows: results/boxes.csv, one per run; `plot_boxes.py` draws the chart. Runs that have a row are
skipped. --cpu-hours limits the total of the comparison (without `is_extra`), after which no run is
started.

At most `BOXED` images of the training split have boxes, all of them or a part. The coarse stage
reads the captions and questions of all images, and no boxes. One coarse model is trained per data
set, and again if its directory was deleted; the fine stage is trained with three seeds, which also
choose the images. All runs of an arm have the same steps, so they differ in boxes only; "fine only,
longer" has the steps of both stages.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from box_metrics import (
    GROUPS,
    NUMBERS,
    Asked,
    Values,
    guess_by_chance,
    guess_frequent_boxes,
    measure_boxes,
    open_asked,
    side_of,
)
from experiments import Inputs, Place, Rows, SeenInputs, cpu_seconds, measure, use_one_thread

from fiber.atomic_io import read_json
from fiber.checkpoints.model_dir import load_model
from fiber.config_io import replace_fields
from fiber.data import Tokenizer, sources
from fiber.data.prompts.classes import class_prompt
from fiber.data.prompts.sampling import SampledPrompts
from fiber.data.record import ConcatRecords, Record, RecordSet
from fiber.training.config.run import RunConfig, load_recipe
from fiber.training.config.tasks import CLASS_SOURCES
from fiber.training.run_dir import RunFolder
from fiber.training.train import train

KNOWN_BY = ("data", "arm", "percent", "seed")
#: Maximum number of images with boxes.
BOXED = 2400
#: Percentages of these images that runs train with.
PERCENTS = (100, 25, 5)
#: Compared arms.
COARSE_FINE, FINE, LONGER = "coarse, then fine", "fine only", "fine only, longer"
#: `FINE` with gray images in training and evaluation.
TEXT_ONLY = "text only"
#: Rows without a fine model.
COARSE, CHANCE, FREQUENT = "coarse", "chance", "most frequent box"
#: Datasets of the longer arm, which has the first seed only.
LONGER_DATA = ("scenes",)


@dataclass(frozen=True)
class Steps:
    """Training steps of a dataset's models."""

    coarse: int
    fine: int


STEPS = {"scenes": Steps(coarse=600, fine=960), "stamps": Steps(coarse=300, fine=450)}
#: Changes of the coarse recipe; `ablate.py` shows why ITM negatives are random.
COARSE_CHANGES: dict[str, Any] = {"tasks.image_text.itm_negatives": "random"}
#: Changes of the fine recipe. Stamps: half of the nouns per prompt, many steps with small batches.
FINE_CHANGES: dict[str, dict[str, Any]] = {
    "scenes": {},
    "stamps": {"data.batch_size": 8, "tasks.grounding.max_classes": 8},
}
#: Metric of the coarse stage.
RETRIEVAL = ("retrieval", "val", "text_to_image_recall_at_10")


@dataclass(frozen=True)
class Job:
    """One run of one dataset."""

    arm: str
    percent: int
    seed: int

    @property
    def needs_coarse(self) -> bool:
        """Whether it starts from the coarse model."""
        return self.arm == COARSE_FINE

    def known(self, kind: str) -> dict[str, Any]:
        """Return the columns that identify its row."""
        return {"data": kind, "arm": self.arm, "percent": self.percent, "seed": self.seed}


@dataclass(frozen=True)
class BoxPlace(Place):
    """Where one dataset and its coarse model are."""

    @property
    def coarse(self) -> Path:
        """The coarse model."""
        return self.runs / f"boxes-coarse-{self.kind}"

    @property
    def has_coarse(self) -> bool:
        """Whether the coarse model is trained."""
        return RunFolder(path=self.coarse).is_finished


def coarse_config(kind: str) -> RunConfig:
    """Return the configuration of the coarse model."""
    changes = {"train.steps": STEPS[kind].coarse, **COARSE_CHANGES}
    return replace_fields(load_recipe("scenes_coarse"), changes)


def fine_config(kind: str, job: Job) -> RunConfig:
    """Return the configuration of a fine model."""
    steps = STEPS[kind].fine + (STEPS[kind].coarse if job.arm == LONGER else 0)
    changes = {"train.steps": steps, "train.seed": job.seed, "train.checkpoint_every": 0}
    return replace_fields(load_recipe("scenes_fine"), {**changes, **FINE_CHANGES[kind]})


def chosen_images(images: Iterable[str], percent: int, seed: int) -> list[str]:
    """Choose the images with boxes; a smaller part is a subset of a larger one.

    Args:
        images: of the training split, by `image_id`.
        percent: of `BOXED`, or of all images where they are fewer.
        seed: of the order in which they are taken.
    """
    order = sorted(set(images))
    random.Random(seed).shuffle(order)
    return order[: max(1, round(min(BOXED, len(order)) * percent / 100))]


def boxed_records(folder: Path, percent: int, seed: int) -> dict[str, list[Record]]:
    """Read the records with boxes of the chosen images, by source."""
    asked = sources.detection(folder, "train")
    chosen = set(chosen_images((record.image_id for record in asked), percent, seed))
    everything: dict[str, RecordSet] = {
        "referring": sources.referring(folder, "train"),
        "phrases": sources.phrases(folder, "train"),
        "detection": asked,
    }
    parts = {
        source: [r for r in (records[i] for i in range(len(records))) if r.image_id in chosen]
        for source, records in everything.items()
    }
    # A held-out class without boxes would be learned as absent.
    held_out = read_json(folder / "dataset.json")["held_out"].get("nouns", [])
    parts["detection"] = without_classes(parts["detection"], held_out)
    return parts


def without_classes(records: Sequence[Record], classes: Sequence[str]) -> list[Record]:
    """Remove classes from the prompts of records, none of which has boxes of them."""
    if not records:
        return []
    kept = [name for name in records[0].labels if name not in classes]
    prompt, places = class_prompt(kept), {name: place for place, name in enumerate(kept)}
    found = []
    for record in records:
        own = [places[record.labels[label]] for label in record.box_labels]
        found.append(
            replace(
                record,
                text=prompt.text,
                labels=prompt.labels,
                label_spans=prompt.spans,
                char_spans=tuple(prompt.spans[place] for place in own),
                box_labels=tuple(own),
                label_ids=(),
                label_groups=(),
            )
        )
    return found


def finish(place: BoxPlace, job: Job) -> list[dict[str, Any]]:
    """Run a job; return its rows."""
    return guess(place) if job.arm == CHANCE else [train_fine(place, job)]


def train_coarse(place: BoxPlace) -> list[dict[str, Any]]:
    """Train or resume the coarse model and evaluate it; return its row."""
    use_one_thread()
    began = cpu_seconds()
    config = coarse_config(place.kind)
    train(config, data=place.data, output=place.coarse, resume=True, threads=1, quiet=True)
    numbers = measure(load_model(place.coarse), place.data, {"retrieval": 1000})
    row = _row(
        place.kind,
        Job(arm=COARSE, percent=0, seed=config.train.seed),
        steps=config.train.steps,
        batch_size=config.data.batch_size,
        seconds=cpu_seconds() - began,
        retrieval=f"{numbers[RETRIEVAL]:.4f}",
    )
    return [row]


def train_fine(place: BoxPlace, job: Job) -> dict[str, Any]:
    """Train and evaluate a fine model; return its row."""
    use_one_thread()
    began = cpu_seconds()
    kind, inputs = place.kind, inputs_of(job)
    config = fine_config(kind, job)
    parts = boxed_records(place.data, job.percent, job.seed)
    task, words = config.tasks.grounding, place.data / "tokenizer.json"
    drawn = SampledPrompts(
        parts["detection"],
        Tokenizer.from_file(words),
        max_tokens=config.model.max_tokens,
        rules=task.prompt_rules(),
        seed=config.train.seed,
    )
    records = ConcatRecords(
        [drawn if source in CLASS_SOURCES else parts[source] for source in task.sources]
    )
    with tempfile.TemporaryDirectory() as output:
        run = Path(output) / "run"
        train(
            config,
            data={"grounding": SeenInputs(records, inputs, side=side_of(place.data))},
            output=run,
            init=place.coarse if job.needs_coarse else None,
            tokenizer=words,
            device="cpu",
            threads=1,
            quiet=True,
        )
        values = measure_boxes(
            load_model(run), open_asked(place.data), inputs, classes_per_prompt=task.max_classes
        )
    return _row(
        kind,
        job,
        parts["detection"],
        steps=config.train.steps,
        batch_size=config.data.batch_size,
        seconds=cpu_seconds() - began,
        values=values,
    )


def inputs_of(job: Job) -> Inputs:
    """Return the inputs that a run sees."""
    return "text" if job.arm == TEXT_ONLY else "both"


def guess(place: BoxPlace) -> list[dict[str, Any]]:
    """Evaluate chance and the most frequent boxes; return their rows."""
    began = cpu_seconds()
    asked: Asked = open_asked(place.data)
    job = Job(arm=FREQUENT, percent=100, seed=0)
    training = boxed_records(place.data, job.percent, job.seed)
    chance, frequent = guess_by_chance(asked), guess_frequent_boxes(asked, training)
    seconds = cpu_seconds() - began
    return [
        _row(place.kind, Job(arm=CHANCE, percent=0, seed=0), values=chance),
        _row(place.kind, job, training["detection"], seconds=seconds, values=frequent),
    ]


def _row(
    kind: str,
    job: Job,
    boxed: Sequence[Record] = (),
    *,
    steps: int = 0,
    batch_size: int = 0,
    seconds: float = 0.0,
    retrieval: str = "",
    values: Values | None = None,
) -> dict[str, Any]:
    """Return a row, with the same columns for every kind of run."""
    numbers = {
        f"{column}/{group}": "" if values is None else f"{values[column, group]:.4f}"
        for _, _, column in NUMBERS
        for group in GROUPS
    }
    return {
        **job.known(kind),
        "pictures": len(boxed),
        "boxes": sum(len(record.boxes_xyxy) for record in boxed),
        "steps": steps,
        "batch_size": batch_size,
        "cpu_seconds": f"{seconds:.0f}",
        "coarse_text_to_image_recall_at_10": retrieval,
        **numbers,
    }


def wanted(seeds: Sequence[int], kinds: Sequence[str]) -> Iterator[tuple[str, Job]]:
    """List the runs by seed, so that a budget drops whole seeds."""
    for kind in kinds:
        yield kind, Job(CHANCE, 0, 0)
    for seed in seeds:
        for kind in kinds:
            for percent in PERCENTS:
                yield kind, Job(COARSE_FINE, percent, seed)
                yield kind, Job(FINE, percent, seed)
            if seed == seeds[0]:
                yield kind, Job(TEXT_ONLY, 100, seed)
                if kind in LONGER_DATA:
                    yield from ((kind, Job(LONGER, percent, seed)) for percent in PERCENTS)


def is_extra(row: Mapping[str, str]) -> bool:
    """Whether a row is not part of the comparison: more steps, or other data."""
    return row["arm"] == LONGER or row["data"] not in STEPS


def hours_of(rows: Iterable[Mapping[str, str]]) -> float:
    """Return the total CPU hours of runs."""
    return sum(float(row["cpu_seconds"]) for row in rows) / 3600


def main() -> None:
    """Run all jobs that have no row yet, within the budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, nargs="+", help="directories of scenes or stamps")
    parser.add_argument(
        "--output", type=Path, default=Path("runs"), help="directory of the coarse models"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--cpu-hours", type=float, default=3.0, help="budget of the comparison")
    options = parser.parse_args()
    given = [BoxPlace(data=data, runs=options.output) for data in options.data]
    places = {place.kind: place for place in given}
    use_one_thread()
    rows = Rows("boxes", KNOWN_BY)
    waiting = [
        (kind, job)
        for kind, job in wanted(options.seeds, list(places))
        if not rows.has(**job.known(kind))
    ]
    run_all(places, waiting, rows, options.workers, options.cpu_hours)


def run_all(
    places: dict[str, BoxPlace],
    waiting: list[tuple[str, Job]],
    rows: Rows,
    workers: int,
    cpu_hours: float,
) -> None:
    """Run waiting jobs in order, except for those whose coarse model is still being trained."""
    running: dict[Future[list[dict[str, Any]]], str] = {}
    begun: set[str] = set()

    def start(pool: ProcessPoolExecutor) -> bool:
        """Start the first job that can start."""
        for at, (kind, job) in enumerate(waiting):
            place = places[kind]
            measured = rows.has(**Job(COARSE, 0, coarse_config(kind).train.seed).known(kind))
            if job.needs_coarse and kind not in begun and not (place.has_coarse and measured):
                begun.add(kind)
                running[pool.submit(train_coarse, place)] = f"{kind}: {COARSE}"
                return True
            if not job.needs_coarse or place.has_coarse:
                del waiting[at]
                name = f"{kind}: {job.arm}, {job.percent} %, seed {job.seed}"
                running[pool.submit(finish, place, job)] = name
                return True
        return False

    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while waiting or running:
            while len(running) < workers and start(pool):
                pass
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                rows.add(future.result())
                used = hours_of(row for row in rows.rows if not is_extra(row))
                print(f"{name}: {used:.2f} CPU hours so far", flush=True)
                if used >= cpu_hours and waiting:
                    print(f"budget used up: {len(waiting)} runs skipped", flush=True)
                    waiting.clear()


if __name__ == "__main__":
    main()
