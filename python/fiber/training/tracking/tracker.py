"""Base class of trackers: callbacks that send metrics to an experiment tracker.

A tracker never ends or delays a run. Its library is called by a thread of its own; the first error
is a warning, and all metrics are in metrics.jsonl.
"""

from __future__ import annotations

import importlib.util
import math
import queue
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from fiber.atomic_io import write_file
from fiber.config_io import field_names, to_dict
from fiber.messages import shown
from fiber.training.tracking.callback import Callback, RunContext

#: Lines of metrics that wait for a slow tracker; further ones are dropped with a warning.
QUEUE_LINES = 1000
#: Maximum number of characters of an id.
_MAX_ID = 200


class Tracker(Callback):
    """Base class of trackers; subclasses override `open`, `log` and `close`.

    Raises:
        ModuleNotFoundError: if the library is not installed; the message names the extra.
    """

    #: Name on the command line and of the extra.
    name: ClassVar[str]
    #: Module of the library.
    module: ClassVar[str]
    #: How long a finished run waits for its tracker.
    close_seconds: float = 60.0

    def __init__(self) -> None:
        if importlib.util.find_spec(self.module) is None:
            raise ModuleNotFoundError(
                f"tracker {self.name!r} requires {self.module}; run pip install"
                f" 'fiber-vl[{self.name}]'",
                name=self.module,
            )
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUE_LINES)
        self._thread: threading.Thread | None = None
        self._is_open = self._has_warned = False
        self._error: BaseException | None = None

    def open(self, run: RunContext) -> None:
        """Open the tracker's run, or the same one again if the training run is resumed."""
        raise NotImplementedError

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the finite numbers of a line of metrics, by names such as "losses/itc"."""
        raise NotImplementedError

    def close(self, *, failed: bool) -> None:
        """Close the tracker's run; `failed` is True if the training run did not finish."""
        raise NotImplementedError

    def on_run_start(self, run: RunContext) -> None:
        """Start the thread and open the tracker's run."""
        self._is_open = self._has_warned = False
        self._error, self._queue = None, queue.Queue(QUEUE_LINES)
        self._queue.put(lambda: self._open(run))
        # A daemon, so that a library that hangs does not keep the process alive.
        self._thread = threading.Thread(
            target=self._work, args=(self._queue,), name=f"fiber-{self.name}", daemon=True
        )
        self._thread.start()

    def on_step_end(self, step: int, metrics: Mapping[str, Any] | None) -> None:
        """Pass a line of metrics to the thread."""
        if metrics is not None:
            numbers = flat_numbers(metrics)
            try:
                self._queue.put_nowait(lambda: self._log(step, numbers))
            except queue.Full:
                self._warn(f"{QUEUE_LINES} lines of metrics wait for it; further ones are dropped")
        self._report()

    def on_run_end(self, error: BaseException | None) -> None:
        """Close the tracker's run and wait for the thread, at most `close_seconds`."""
        deadline = time.monotonic() + self.close_seconds
        try:
            self._queue.put(
                lambda: self._close(failed=error is not None), timeout=self.close_seconds
            )
            self._queue.put(None, timeout=max(0.0, deadline - time.monotonic()))
        except queue.Full:
            pass  # The thread hangs, as the next lines find.
        assert self._thread is not None
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._warn(f"it was not done {self.close_seconds:g} s after the end of the run")
        self._report()

    def _work(self, calls: queue.Queue[Callable[[], None] | None]) -> None:
        while (call := calls.get()) is not None:
            try:
                call()
            except BaseException as error:  # A library may even raise SystemExit.
                self._error = self._error or error

    def _open(self, run: RunContext) -> None:
        self.open(run)
        self._is_open = True

    def _log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._is_open:
            self.log(step, numbers)

    def _close(self, *, failed: bool) -> None:
        if self._is_open:
            self.close(failed=failed)

    def _report(self) -> None:
        if self._error is not None:
            self._warn(f"{type(self._error).__name__}: {self._error}")

    def _warn(self, reason: str) -> None:
        """Warn once, from the training thread."""
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"tracker {self.name!r} failed: {reason.rstrip('.')}. The run continues;"
                " metrics.jsonl has all metrics",
                RuntimeWarning,
                stacklevel=3,
            )


def flat_numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the finite numbers of a line of metrics, except the step.

    >>> flat_numbers({"step": 2, "losses": {"itc": 0.5, "itm": float("nan")}, "images": 8})
    {'losses/itc': 0.5, 'images': 8.0}
    """
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= flat_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and math.isfinite(value) and prefix + name != "step":
            found[prefix + name] = float(value)
    return found


def flat_config(run: RunContext) -> dict[str, Any]:
    """Return the fields of a run's configuration by dotted name."""
    nested = to_dict(run.config)
    found: dict[str, Any] = {}
    for name in field_names(run.config, only_stored=True):
        value: Any = nested
        for part in name.split("."):
            value = value[part]
        if not isinstance(value, dict):
            found[name] = value
    return found


def tracking_folder(run: RunContext, name: str) -> Path:
    """Return the folder of a tracker's files in the run's folder, and create it."""
    folder = run.folder / "tracking" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def stored_id(run: RunContext, name: str, new: Callable[[], str] | None = None) -> tuple[str, bool]:
    """Return the id of the tracker's run, and True if it was stored by an earlier start.

    `new` makes an id for a new run; the default is 8 random hexadecimal digits.

    Raises:
        ValueError: if the stored id is no line of text.
    """
    file = tracking_folder(run, name) / "run_id"
    if file.is_file():
        stored = file.read_bytes().decode(errors="replace").strip()
        if not (0 < len(stored) <= _MAX_ID and stored.isprintable()):
            raise ValueError(
                f"{file} has {shown(stored)}; expected an id of at most {_MAX_ID} printable"
                " characters"
            )
        return stored, True
    own = new() if new is not None else uuid.uuid4().hex[:8]
    write_file(file, lambda part: part.write_text(f"{own}\n", encoding="utf-8"))
    return own, False
