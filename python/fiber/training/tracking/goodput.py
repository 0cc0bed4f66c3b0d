"""Goodput: the share of a run's wall time that went into steps that count.

A run may start several times in its folder: by hand, or because torchrun restarts it after a kill.
Each start appends a line to `attempts.jsonl`, with the wall time and the restarts before it. Steps
that a kill lost are in the wall time but not in the steps that count, since metrics.jsonl drops
their lines.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiber.atomic_io import JSON_ERRORS, write_file
from fiber.config_io import check_ranges, from_dict, to_dict

#: Name of the file in the run's folder.
ATTEMPTS_FILE = "attempts.jsonl"


#: Least and greatest values of an attempt, which is written into metrics.jsonl.
_RANGES: dict[str, tuple[float, float]] = dict.fromkeys(
    ("started", "wall_seconds", "step_seconds", "restarts", "job_restarts"), (0, 2**53)
)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a run; a line of attempts.jsonl."""

    #: Seconds since the epoch when all ranks had joined, by rank 0's clock.
    started: float
    #: Wall time before this start, in seconds, with lost steps. It includes the pause before a
    #: restart by torchrun, which keeps its machines, but not the pause before a start by hand.
    wall_seconds: float
    #: Seconds of the steps that count before this start.
    step_seconds: float
    #: Restarts so far, by torchrun or by hand.
    restarts: int
    #: TORCHELASTIC_RUN_ID and TORCHELASTIC_RESTART_COUNT; "" and 0 without torchrun.
    job: str
    job_restarts: int


def begin_attempt(
    folder: Path,
    entries: Sequence[Mapping[str, Any]],
    kept: int,
    *,
    started: float,
    environment: Mapping[str, str] | None = None,
) -> Attempt:
    """Append a start to attempts.jsonl; call on rank 0 only. An invalid file is replaced.

    Args:
        folder: folder of the run.
        entries: all lines of metrics.jsonl.
        kept: number of lines that remain; the steps of the others are lost.
        started: seconds since the epoch when the start began.
        environment: environment variables; default: those of the process.
    """
    env = os.environ if environment is None else environment
    job = env.get("TORCHELASTIC_RUN_ID", "")
    job_restarts = int(env.get("TORCHELASTIC_RESTART_COUNT", "0"))
    path = folder / ATTEMPTS_FILE
    last = _last_attempt(path)
    wall = max([last.wall_seconds if last else 0.0, *map(_wall_seconds, entries)])
    restarts = job_restarts
    if last is not None:
        is_same_job = job == last.job and job_restarts > last.job_restarts
        if is_same_job:
            wall = max(wall, last.wall_seconds + started - last.started)
        new_restarts = job_restarts - last.job_restarts if is_same_job else 1 + job_restarts
        restarts = last.restarts + new_restarts
    attempt = Attempt(
        started=started,
        wall_seconds=wall,
        step_seconds=_step_seconds(entries[kept - 1]) if kept else 0.0,
        restarts=restarts,
        job=job,
        job_restarts=job_restarts,
    )
    # A partial last line, as a crash leaves it, is dropped.
    old = path.read_bytes().rpartition(b"\n")[0] + b"\n" if last is not None else b""
    text = old + json.dumps(to_dict(attempt)).encode() + b"\n"
    write_file(path, lambda part: part.write_bytes(text))
    return attempt


class Goodput:
    """Goodput of a run since its first start."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._step_seconds = attempt.step_seconds
        # The wall clock may be adjusted during the run.
        self._began = time.monotonic() - (time.time() - attempt.started)

    def fields(self, step_seconds: float) -> dict[str, float]:
        """Add the time of finished steps; return the fields of a line of metrics."""
        self._step_seconds += step_seconds
        wall = self._attempt.wall_seconds + time.monotonic() - self._began
        return {
            "wall_seconds": round(wall, 6),
            "goodput": round(self._step_seconds / max(wall, 1e-9), 9),
            "restarts": self._attempt.restarts,
        }


def _wall_seconds(entry: Mapping[str, Any]) -> float:
    """Return the wall time of a line."""
    return float(entry["performance"]["wall_seconds"])


def _step_seconds(entry: Mapping[str, Any]) -> float:
    """Return the time of the steps that count up to a line."""
    return _wall_seconds(entry) * float(entry["performance"]["goodput"])


def _last_attempt(path: Path) -> Attempt | None:
    """Read the last complete line; None if there is none, with a warning if it is invalid."""
    if not path.is_file():
        return None
    *lines, _ = path.read_bytes().split(b"\n")
    if not lines:
        return None
    try:
        attempt = from_dict(Attempt, json.loads(lines[-1].decode("utf-8")))
        check_ranges(attempt, "", _RANGES)
        return attempt
    except (TypeError, AttributeError, *JSON_ERRORS) as error:
        warnings.warn(
            f"{path}: line {len(lines)} is invalid ({error}); goodput and restarts are counted from"
            " metrics.jsonl alone",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
