"""`fiber.map`: one task of a model over all images of a source, written as Parquet files."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import fiber
from fiber.bulk.annotator import Annotator, without_truncation_warnings
from fiber.bulk.output import (
    VERSION,
    UnitWriter,
    done_units,
    join_errors,
    read_description,
    row_schema,
    write_description,
)
from fiber.bulk.parquet import require_arrow
from fiber.bulk.ranks import Rank, is_orphan
from fiber.bulk.sources import BulkRecords, name_of_image, open_records
from fiber.config_io import to_dict
from fiber.data.record import AnyPath, Record
from fiber.env import cores_per_process
from fiber.messages import shown

#: Default number of records of a batch, the largest batch of the image encoder.
BATCH_SIZE = 16
#: Called with the number of records done and of all, of this rank.
Progress = Callable[[int, int], None]


@dataclass
class _Job:
    """How batches are computed."""

    annotator: Annotator
    records: BulkRecords
    batch_size: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """What `fiber.map` is asked to do. It can be pickled if its annotator can."""

    data: AnyPath
    output: Path
    annotator: Annotator
    source: str | None
    splits: tuple[str, ...]
    batch_size: int
    threads: int

    def open(self) -> OpenWork:
        """Load the model, open the source, and write or check `map.json`.

        Raises:
            ValueError: if the output has results of another model, source, task or options.
        """
        annotator = self.annotator
        texts = [*annotator.shared]
        records = open_records(
            self.data, annotator.task, texts, source=self.source, splits=self.splits
        )
        annotator.check(records.kind)
        units = records.units()
        write_description(self.output, describe(annotator, records, len(units), self.batch_size))
        schema = row_schema(annotator.task, annotator.vector_width)
        job = _Job(annotator, records, self.batch_size, self.threads)
        return OpenWork(job, units, self.output, schema)


@dataclass(frozen=True)
class OpenWork:
    """An open source, and a loaded model."""

    job: _Job
    units: Sequence[Sequence[int]]
    output: Path
    schema: Any

    def finished(self) -> set[int]:
        """Return the units that are done."""
        return {unit for unit in done_units(self.output) if unit < len(self.units)}

    def run(self, units: Sequence[int], progress: Progress | None = None) -> tuple[int, int]:
        """Do those of the units that are not done; return how many rows were written, and units."""
        finished = done_units(self.output)
        total = sum(len(self.units[unit]) for unit in units)
        seen = sum(len(self.units[unit]) for unit in units if unit in finished)
        rows = done = 0
        if progress is not None:
            progress(seen, total)
        with _Workers(self.job) as workers:
            for unit in units:
                if unit in finished:
                    done += 1
                    continue
                with UnitWriter(self.output, unit, self.schema) as writer:
                    for columns, errors, last in workers.results(self.units[unit]):
                        writer.add(columns, errors)
                        if progress is not None:
                            progress(seen + last, total)
                seen += len(self.units[unit])
                rows, done = rows + writer.rows, done + 1
        return rows, done


class Engine(Protocol):
    """What shares the units among machines, such as `fiber.bulk.ray_engine.RayEngine`."""

    @property
    def cpus(self) -> float:
        """Cores of a worker."""
        ...

    def run(self, work: Work, progress: Progress | None) -> dict[str, Any]:
        """Do the units that are not done; return counts as of `fiber.map`."""
        ...


def map(  # noqa: A001 (the name that users know from other libraries)
    data: AnyPath,
    task: str,
    output: AnyPath,
    *,
    model: Any = None,
    source: str | None = None,
    split: str | None = None,
    batch_size: int = BATCH_SIZE,
    threads: int | None = None,
    rank: int = 0,
    ranks: int = 1,
    engine: Engine | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Run a task on all images of a source, and write the results as Parquet files.

    Units that are done are not read again, so a run that was interrupted goes on.

    Args:
        data: folder, file or URL, as for `fiber data inspect`; or a folder of image files.
        task: "embed", "hash", "caption", "ground", "detect", "answer", "match" or "segment".
        output: new folder, or one that the same call wrote (docs/bulk.md).
        model: path or name of a model, as for `fiber.load`, or a model. "hash" needs none.
        source: source whose records are used. Default: the first one with the texts of the task.
        split: splits to read, joined by "+". Default: all.
        batch_size: number of records of a batch. Results depend on it in their last digits.
        threads: batches that are computed at a time, each on one core of a CPU. Results do not
            depend on it. Default: the cores of this process.
        rank: number of this process among `ranks` that share the units.
        ranks: number of these processes.
        engine: `fiber.bulk.ray_engine.RayEngine` to share the units among the workers of Ray.
            `threads` are then those of a worker.
        progress: called with the number of records done, and of all, of this rank.
        options: texts for all records, and options of the task and of loading, as of `Annotator`.

    Returns:
        Counts: "units", "done", "rows" and "seconds" of this call; and if all units of all ranks
        are done, "complete" is True and "total" has the "rows", "errors" and "truncated" of all.

    Raises:
        FileNotFoundError: if the data do not exist.
        ModuleNotFoundError: if pyarrow is not installed.
        OSError: if a result cannot be written. Units that are done stay.
        ValueError: if the task needs texts and the data have none, an option is wrong, or `output`
            has results of another model, source, task or options.
    """
    require_arrow("fiber.map")
    _check_numbers(batch_size=batch_size, threads=threads, ranks=ranks)
    if not isinstance(rank, int) or not 0 <= rank < ranks:
        raise ValueError(f"rank must be from 0 to {ranks - 1}, got {shown(rank)}")
    if threads is None:
        threads = cores_per_process() if engine is None else max(1, int(engine.cpus))
    work = Work(
        data=data,
        output=Path(output),
        annotator=Annotator(model, task, **options),
        source=source,
        splits=tuple(split.split("+")) if split else (),
        batch_size=batch_size,
        threads=threads,
    )
    began = time.monotonic()
    if engine is not None:
        if ranks != 1:
            raise ValueError(f"ranks is {ranks}; expected 1, since the engine shares the units")
        found = engine.run(work, progress)
    else:
        found = _run_as(Rank(rank, ranks), work.open(), progress)
    seconds = round(time.monotonic() - began, 3)
    return {"output": str(output), "task": task, **found, "seconds": seconds}


def _run_as(rank: Rank, work: OpenWork, progress: Progress | None) -> dict[str, Any]:
    todo = [unit for unit in range(len(work.units)) if rank.owns(unit)]
    rows, done = work.run(todo, progress)
    counts = {"units": len(todo), "done": done, "rows": rows}
    return {
        "rank": rank.number,
        "ranks": rank.total,
        **counts,
        **completion(work.output, len(work.units)),
    }


def summary(output: AnyPath) -> dict[str, Any]:
    """Return whether all units of a folder of `fiber.map` are done, and the counts if they are."""
    folder = Path(output)
    about = read_description(folder)
    found = {"output": str(folder), "task": about["task"]}
    return found | completion(folder, about["source"]["units"])


def completion(output: Path, units: int) -> dict[str, Any]:
    """Join the errors if all units are done; return "complete", and then the counts as "total"."""
    total = join_errors(output, units)
    return {"complete": total is not None, **({} if total is None else {"total": total})}


def describe(
    annotator: Annotator, records: BulkRecords, units: int, batch_size: int
) -> dict[str, Any]:
    """Return the content of `map.json`."""
    texts: dict[str, Any] = {"from": "none"}
    if annotator.shared:
        ((kind, value),) = annotator.shared.items()
        texts = {"from": "option", "kind": kind, "value": value}
    elif records.kind is not None:
        texts = {"from": "records", "kind": records.kind}
    elif "classes" in annotator.task.texts:
        texts = {"from": "model", "kind": "classes", "value": list(annotator.stage.classes)}
    stage = annotator.stage
    model = None
    if stage is not None:
        model = {"name": annotator.name, "fingerprint": model_fingerprint(stage)}
    return {
        "format": "fiber.map",
        "version": VERSION,
        "task": annotator.task.name,
        "model": model,
        "source": {
            "data": records.data,
            "source": records.source,
            "splits": list(records.splits),
            "records": len(records.records),
            "units": units,
            "fingerprint": records.fingerprint,
        },
        "texts": texts,
        "options": {
            "batch_size": batch_size,
            "device": getattr(getattr(stage, "device", None), "type", "cpu"),
            **annotator.options,
            **annotator.limits,
        },
        "versions": {"fiber": fiber.__version__, **_torch_version(stage)},
    }


def _torch_version(stage: Any) -> dict[str, str]:
    return {"torch": version("torch")} if hasattr(stage, "dtype") else {}


def model_fingerprint(model: Any) -> str:
    """Return a hash of a model: weights, config, dtype, tokenizer, answers and classes.

    Of exported graphs, it is that of their files.
    """
    found = hashlib.sha256()
    about: dict[str, Any] = {
        "config": to_dict(model.config),
        "tokenizer": None if model.tokenizer is None else model.tokenizer.to_json(),
        "answers": list(model.answers),
        "classes": list(model.classes),
    }
    if hasattr(model, "graphs"):
        files = model.graphs.metadata.files
        about["files"] = {name: file.sha256 for name, file in files.items()}
        about["engine"] = model.graphs.engine
    else:
        from fiber.checkpoints.adapters.files import weights_sha256

        about |= {"weights": weights_sha256(model.network.state_dict()), "dtype": str(model.dtype)}
    found.update(json.dumps(about, sort_keys=True, default=str).encode())
    return found.hexdigest()[:32]


def _check_numbers(**numbers: Any) -> None:
    for name, value in numbers.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise TypeError(f"{name} must be an integer, got {shown(value)}")
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")


def compute_batches(
    annotator: Annotator,
    records: BulkRecords,
    indices: Sequence[int],
    batch_size: int,
    threads: int,
) -> Iterator[tuple[Mapping[str, Any], list[str | None], int]]:
    """Yield the columns and the errors of each batch of records, and the records done so far."""
    with _Workers(_Job(annotator, records, batch_size, threads)) as workers:
        yield from workers.results(indices)


@dataclass
class _Batch:
    """Records of a batch."""

    #: Index and record, or error.
    entries: list[tuple[int, Record | Exception]]
    #: Number of records of the unit up to the end of this batch.
    last: int


class _Workers:
    """Threads that compute batches, each on one core; results come in order."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(job.threads, "map")
        is_gpu = str(getattr(job.annotator.stage, "device", "cpu")).partition(":")[0] != "cpu"
        #: A GPU computes one batch at a time, while other threads decode.
        self._device = threading.Lock() if is_gpu else None
        self._torch_threads: int | None = None
        # Warning filters are those of all threads.
        self._warnings = without_truncation_warnings()

    def __enter__(self) -> _Workers:
        self._warnings.__enter__()
        if hasattr(self._job.annotator.stage, "dtype"):
            import torch

            # Sums of other numbers of threads differ in their last digits.
            self._torch_threads = torch.get_num_threads()
            torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._warnings.__exit__(None, None, None)
        if self._torch_threads is not None:
            import torch

            torch.set_num_threads(self._torch_threads)

    def results(
        self, indices: Sequence[int]
    ) -> Iterator[tuple[Mapping[str, Any], list[str | None], int]]:
        """Yield the columns and the errors of each batch of a unit, and the records done so far."""
        waiting: list[tuple[Future[Any], int]] = []
        for batch in self._batches(indices):
            if len(waiting) > 2 * self._job.threads:
                future, last = waiting.pop(0)
                yield *future.result(), last
            if is_orphan():
                raise ChildProcessError("the command that started this process has ended")
            waiting.append((self._pool.submit(self._compute, batch), batch.last))
        for future, last in waiting:
            yield *future.result(), last

    def _batches(self, indices: Sequence[int]) -> Iterator[_Batch]:
        place_of = {int(index): place for place, index in enumerate(indices)}
        entries: list[tuple[int, Record | Exception]] = []
        for entry in self._job.records.of_unit(indices):
            entries.append(entry)
            if len(entries) == self._job.batch_size:
                yield _Batch(entries, place_of[entry[0]] + 1)
                entries = []
        if entries:
            yield _Batch(entries, len(indices))

    def _compute(self, batch: _Batch) -> tuple[dict[str, Any], list[str | None]]:
        records = self._job.records
        if not hasattr(self._own, "annotator"):
            if self._torch_threads is not None:
                import torch

                torch.set_num_threads(1)
            self._own.annotator = self._job.annotator.for_thread()
        annotator: Annotator = self._own.annotator
        given: dict[str, list[Any]] = {"image": []}
        about: dict[str, list[Any]] = {"record": [], "key": [], "image": [], "text": []}
        kinds = _kinds(records)
        given |= {kind: [] for kind in kinds}
        for index, record in batch.entries:
            about["record"].append(index)
            if isinstance(record, Exception):
                given["image"].append(record)
                texts: dict[str, Any] = {}
                own = (str(index), None, None)
            else:
                given["image"].append(_image(record))
                texts = records.texts_of(record)
                own = (record.key, name_of_image(record), record.text or None)
            for kind in kinds:
                given[kind].append(texts.get(kind))
            for name, value in zip(("key", "image", "text"), own, strict=True):
                about[name].append(value)
        decoded = annotator.decode(given)
        if self._device is None:
            found = annotator(decoded)
        else:
            with self._device:
                found = annotator(decoded)
        # A task's own "text" is what it was asked with.
        return {**about, **found}, found["error"].tolist()


def _kinds(records: BulkRecords) -> tuple[str, ...]:
    if records.kind == "caption" and records.source != "captions":
        return "caption", "spans"
    return () if records.kind is None else (records.kind,)


def _image(record: Record) -> Any:
    """Return the first image of a record as stored, or the error of reading it."""
    try:
        return record.images[0]
    except (OSError, ValueError) as error:
        return error
