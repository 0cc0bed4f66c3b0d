"""`fiber map` on the machines of a Ray cluster: Ray Data hands units to workers (extra `ray`).

Workers do what the ranks of `fiber.map` do, a unit at a time, so the files are the same, and a run
goes on from what is there, with Ray or without. All machines must see the source and the output.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from fiber.bulk.map import Progress, Work, completion
from fiber.data.storage.remote import is_url
from fiber.messages import printable, shown

#: Longest time in seconds until the head of a cluster answers.
CONNECT_SECONDS = 10.0
#: Blocks of units for each worker, so that none waits long for the last one.
_BLOCKS_PER_WORKER = 16
#: Length in characters of the part of an error of Ray that is shown.
_MAX_REASON = 240


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Ray Data, as the `engine` of `fiber.map`.

    A process that has called `ray.init` uses that cluster, which stays.

    Args:
        address: of the head, such as "10.0.0.1:6379", or "auto" for the cluster of this machine.
            Default: RAY_ADDRESS, or else the cores of this machine.
        workers: maximum number of workers. Default: as many as the cluster has room for.
        cpus: cores of each worker.
        gpus: GPUs of each worker.

    Raises:
        ValueError: if a number is out of range.
    """

    address: str | None = None
    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("cpus", 0), ("gpus", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"{name} is {shown(value)}; expected {least} or more")
        if not self.cpus and not self.gpus:
            raise ValueError("cpus and gpus are 0; expected some of a machine for each worker")

    def run(self, work: Work, progress: Progress | None = None) -> dict[str, Any]:
        """Do the units that are not done, and return counts as of `fiber.map`.

        Raises:
            ConnectionError: if there is no cluster at the address.
            ModuleNotFoundError: if ray is not installed.
            ValueError: if the cluster has no room for a worker, and as of `fiber.map`.
            OSError: as of `fiber.map`.
        """
        ray = require_ray()
        work = _with_absolute_paths(work)
        with _cluster(ray, self.address), _own_errors(ray):
            workers = self._workers(ray)
            remote = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus)
            sizes, finished = ray.get(remote(_begin).remote(work))
            todo = [unit for unit in range(len(sizes)) if unit not in finished]
            seen, total = sum(sizes[unit] for unit in finished), sum(sizes)
            if progress is not None:
                progress(seen, total)
            rows = 0
            for unit in self._done(ray, work, todo, workers) if todo else ():
                rows, seen = rows + unit["rows"], seen + sizes[unit["unit"]]
                if progress is not None:
                    progress(seen, total)
            found = ray.get(remote(completion).remote(work.output, len(sizes)))
        counts = {"units": len(sizes), "done": len(sizes), "rows": rows}
        return {"engine": "ray", "workers": workers, **counts, **found}

    def _workers(self, ray: ModuleType) -> int:
        """Return how many workers the cluster has room for."""
        there = ray.cluster_resources()
        needed = {"CPU": self.cpus, "GPU": self.gpus}
        room = min(int(there.get(kind, 0) / each) for kind, each in needed.items() if each)
        if not room:
            raise ValueError(
                f"a worker needs {self.cpus:g} CPUs and {self.gpus:g} GPUs; the Ray cluster has"
                f" {there.get('CPU', 0):g} and {there.get('GPU', 0):g}"
            )
        return room if self.workers is None else min(room, self.workers)

    def _done(
        self, ray: ModuleType, work: Work, todo: Sequence[int], workers: int
    ) -> Iterator[dict[str, Any]]:
        """Yield the number of each unit and of its rows when it is done."""
        data = ray.data
        context = data.DataContext.get_current().copy()
        # There is `progress`.
        context.enable_progress_bars = False
        blocks = min(len(todo), workers * _BLOCKS_PER_WORKER)
        with data.DataContext.current(context):
            units = data.from_items([{"unit": unit} for unit in todo], override_num_blocks=blocks)
            done = units.map_batches(
                _Units,
                fn_constructor_kwargs={"work": work},
                batch_size=1,
                num_cpus=self.cpus,
                num_gpus=self.gpus,
                compute=data.ActorPoolStrategy(min_size=1, max_size=workers),
            )
            yield from done.iter_rows()


class _Units:
    """A worker: does the units of a batch."""

    def __init__(self, work: Work) -> None:
        self._open = work.open()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        units = batch["unit"].tolist()
        return {"unit": units, "rows": [self._open.run([unit])[0] for unit in units]}


def _begin(work: Work) -> tuple[list[int], set[int]]:
    """Write or check map.json where the workers are; return the sizes of units, and those done."""
    opened = work.open()
    return [len(unit) for unit in opened.units], opened.finished()


def require_ray() -> ModuleType:
    """Return the module ray, with ray.data.

    Raises:
        ModuleNotFoundError: if ray is not installed; the message names the extra.
    """
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the engine needs ray: pip install 'fiber-vl[ray]'", name="ray"
        ) from None


@contextmanager
def _cluster(ray: ModuleType, address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine, unless the process has one."""
    if ray.is_initialized():
        yield
        return
    # By default, Ray would join any cluster that was started on this machine.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_address(address)
    try:
        ray.init(address=address, logging_level="error", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = printable(str(error).partition("\n")[0], _MAX_REASON)
        raise ConnectionError(f"no Ray cluster at {shown(address)}: {reason}") from None
    log = logging.getLogger("ray.data")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise ConnectionError if nobody listens; Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no Ray cluster at {shown(address)}: {error}") from None


@contextmanager
def _own_errors(ray: ModuleType) -> Iterator[None]:
    """Re-raise the error of a worker as that of this process."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException = error
        while isinstance(cause, ray.exceptions.RayError):
            within = getattr(cause, "cause", None) or cause.__cause__
            if within is None:
                raise
            cause = within
        raise cause from None


def _with_absolute_paths(work: Work) -> Work:
    """Return the same work for processes with another working directory."""
    data = work.data if is_url(work.data) else Path(work.data).resolve()
    return replace(
        work,
        data=data,
        output=work.output.resolve(),
        annotator=work.annotator.with_absolute_paths(),
    )
