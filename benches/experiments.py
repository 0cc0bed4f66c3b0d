"""Shared code of the trained experiments: rows of finished runs, blind inputs, evaluation.

A run is identified by some columns. Runs that have a row are skipped, so a stopped experiment
continues where it was.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import os
import random
import resource
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from fiber.atomic_io import read_json
from fiber.checkpoints.model_dir import StoredModel
from fiber.data.record import Record, RecordSet, record_in_epoch
from fiber.demo.measures import sample
from fiber.env import describe_machine
from fiber.evaluation.evaluate import evaluate
from fiber.evaluation.tasks import reader_of

RESULTS = Path(__file__).with_name("results")
SPLITS = ("val", "novel")

#: Inputs that a run sees. "text" replaces every image by the same gray one, "picture" every text by
#: the same one, in training and evaluation.
Inputs = Literal["both", "text", "picture"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where one dataset and its runs are."""

    data: Path
    runs: Path

    @property
    def kind(self) -> str:
        """Generator of the data: "scenes" or "stamps"."""
        return read_json(self.data / "dataset.json")["parameters"]["generator"]


class Rows:
    """CSV file with one row per finished run, or per metric of it."""

    def __init__(self, name: str, known_by: Sequence[str]) -> None:
        """Args: name of the file without suffix; columns that identify a run."""
        self.file, self.known_by = RESULTS / f"{name}.csv", tuple(known_by)
        self.rows: list[dict[str, str]] = []
        if self.file.is_file():
            with self.file.open(newline="") as lines:
                self.rows = list(csv.DictReader(lines))

    def has(self, **run: Any) -> bool:
        """Whether a run has a row."""
        wanted = [str(run[name]) for name in self.known_by]
        return any([row[name] for name in self.known_by] == wanted for row in self.rows)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append all rows of a run, with the machine, atomically."""
        machine = describe_machine()
        self.rows += [{k: str(v) for k, v in {**row, **machine}.items()} for row in rows]
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        part = self.file.with_suffix(".part")
        part.write_text(text.getvalue())
        part.replace(self.file)


class SeenInputs(Sequence[Record]):
    """Records without one of their inputs."""

    def __init__(self, records: Sequence[Record] | RecordSet, inputs: Inputs) -> None:
        """Wrap any records, of which `inputs` are kept."""
        self.records, self.inputs = records, inputs

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        return self._seen(self.records[index])

    def in_epoch(self, epoch: int, index: int) -> Record:
        """Return a record as of an epoch."""
        return self._seen(record_in_epoch(self.records, epoch, index))

    def _seen(self, record: Record) -> Record:
        if self.inputs == "text":
            gray = _gray_image(record.image_size or (32, 32))
            return dataclasses.replace(record, images=(gray,) * len(record.images))
        if self.inputs == "picture":
            return dataclasses.replace(record, text="?")
        return record


@functools.cache
def _gray_image(size: tuple[int, int]) -> bytes:
    """Encode a gray image of (height, width) pixels."""
    encoded = io.BytesIO()
    Image.new("RGB", size[::-1], (128, 128, 128)).save(encoded, "PNG")
    return encoded.getvalue()


def measured_records(folder: Path, task: str, split: str, limit: int) -> list[Record]:
    """Read the records of a split that a task is evaluated on, the same for every run."""
    records = reader_of(task)(folder, split)
    if task != "caption":
        return sample(records, limit)
    # An image is captioned once and compared with all of its captions.
    everything = [records[i] for i in range(len(records))]
    images = list(dict.fromkeys(record.image_id for record in everything))
    chosen = set(random.Random(0).sample(images, min(limit, len(images))))
    return [record for record in everything if record.image_id in chosen]


def measure(
    model: StoredModel,
    folder: Path,
    tasks: Mapping[str, int],
    *,
    inputs: Inputs = "both",
) -> dict[tuple[str, str, str], float]:
    """Evaluate a model on both splits.

    Args:
        model: a trained model.
        folder: directory of the data.
        tasks: by name, with the number of records (of "caption": images) that are measured.
        inputs: that the model sees.

    Returns:
        Metrics by (task, split, metric), without those of groups of records.
    """
    found = {}
    for task, limit in tasks.items():
        for split in SPLITS:
            records = SeenInputs(measured_records(folder, task, split, limit), inputs)
            for metric, value in evaluate(model, task, records, rerank=False).items():
                if "/" not in metric:
                    found[task, split, metric] = value
    return found


def run_all(
    rows: Rows,
    runs: Sequence[Mapping[str, Any]],
    work: Callable[..., Sequence[Mapping[str, Any]]],
    *,
    workers: int,
    cpu_hours: float,
) -> None:
    """Make every run that has no row yet, each in a process of its own with one thread.

    Args:
        rows: rows of finished runs; each has the columns of its run, and `cpu_seconds`.
        runs: keyword arguments of `work` by name, which contain the columns that identify a run.
        work: makes one run and returns its rows.
        workers: number of runs at a time.
        cpu_hours: budget of all rows; after that, no run is started.
    """
    waiting = [run for run in runs if not rows.has(**run)]
    running: dict[Future, Mapping[str, Any]] = {}
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=use_one_thread, max_tasks_per_child=1
    ) as pool:
        while waiting or running:
            while waiting and len(running) < workers:
                run = waiting.pop(0)
                running[pool.submit(work, **run)] = run
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run = running.pop(future)
                rows.add(future.result())
                name = ", ".join(str(run[column]) for column in rows.known_by)
                used = sum(float(row["cpu_seconds"]) for row in rows.rows) / 3600
                print(f"{name}: {used:.2f} CPU hours so far", flush=True)
                if used >= cpu_hours and waiting:
                    print(f"budget used up: {len(waiting)} runs skipped", flush=True)
                    waiting.clear()


def cpu_seconds() -> float:
    """Return the CPU time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def use_one_thread() -> None:
    """Run on one thread, so that results are reproducible on the same type of machine."""
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
