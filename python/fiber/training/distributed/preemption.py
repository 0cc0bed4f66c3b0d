"""Stop a run on a signal, for example from a job scheduler, at the end of the current step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from fiber.training.distributed.collectives import any_rank
from fiber.training.distributed.processes import Processes

#: Signals that end a run after the current step.
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
#: Exit code of a run that can be resumed (EX_TEMPFAIL in sysexits.h).
EXIT_CODE = 75


class Preempted(SystemExit):
    """Raised to end a run that a signal stopped; the exit code is `EXIT_CODE`."""

    def __init__(self, signal: str | None) -> None:
        super().__init__(EXIT_CODE)
        #: Name of the signal.
        self.signal = signal or "a signal to another rank"


class StopSignal:
    """Context manager that records `SIGNALS` instead of letting them kill the process.

    Handlers can only be installed in the main thread; in other threads this is a no-op. A signal
    that the process already ignores, such as SIGHUP under nohup, stays ignored.

    Args:
        at_once: raise `Preempted` when a signal arrives, while there is nothing to save.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        #: Name of the signal that arrived last.
        self.name: str | None = None
        self._at_once = at_once
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def arrived(self, processes: Processes) -> bool:
        """Check whether a signal reached any rank; all ranks must call this."""
        return any_rank(self.name is not None, processes)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        if self._at_once:
            raise Preempted(self.name)
