"""Jobs in forked processes with limits: a job that ends its process is a result, too."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

#: Wall-clock time after which a process is ended that waits, such as for a pipe.
MAX_WAIT_SECONDS = 600
Job = TypeVar("Job")


class Ended(NamedTuple):
    """The end of a process in a job."""

    #: Name of the signal, or "exit".
    reason: str
    #: Processor time of the process.
    seconds: float


def run_forked(jobs: Sequence[Job], run: Callable[[Job], Any]) -> Iterator[Any]:
    """Run jobs in a forked process, and in another one after a job that ends it.

    Yields:
        For each job what `run` returned, as JSON gives it back, or an `Ended`.
    """
    done = 0
    while done < len(jobs):
        for result in _run_in_child(jobs[done:], run):
            done += 1
            yield result


def _run_in_child(jobs: Sequence[Job], run: Callable[[Job], Any]) -> Iterator[Any]:
    """Run jobs in one process, until one ends it."""
    end, start = os.pipe()
    process = os.fork()
    if process == 0:
        # Nothing of the run's own code may run in the child after this.
        os.close(end)
        try:
            for job in jobs:
                os.write(start, (json.dumps(run(job)) + "\n").encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(start)
    count = 0
    with os.fdopen(end, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], MAX_WAIT_SECONDS)[0] and (line := pipe.readline()):
            count += 1
            yield json.loads(line)
        if count < len(jobs):
            # It has ended, or waits.
            os.kill(process, signal.SIGKILL)
    _, status, usage = os.wait4(process, 0)
    if count < len(jobs):
        name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "exit"
        yield Ended(name, usage.ru_utime + usage.ru_stime)


def limit(seconds: int, memory_bytes: int) -> None:
    """Limit the processor time and the memory that this process may take from now on."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    # Not RLIMIT_CPU, of the time since the process started: the kernel compares it with a sum of
    # ticks, which differs by seconds from the time that a process is told, after a minute.
    signal.setitimer(signal.ITIMER_PROF, seconds)
