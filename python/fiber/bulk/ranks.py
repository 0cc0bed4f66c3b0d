"""Ranks of `fiber map`: which units a process does, and processes on one machine.

Ranks do not talk to each other. Unit i belongs to rank i mod N.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fiber.env import usable_cores
from fiber.messages import shown

#: Variable with the process id of the command that started a rank, which ends with it.
PARENT = "FIBER_MAP_PARENT"
_TASK_COUNT = "SLURM_ARRAY_TASK_COUNT"
#: Seconds between two looks at the processes.
_POLL_SECONDS = 0.2


class Rank(NamedTuple):
    """A process of several that share the units."""

    number: int = 0
    total: int = 1

    def owns(self, unit: int) -> bool:
        """Return whether this rank does a unit."""
        return unit % self.total == self.number

    def among(self, processes: int, own: int) -> Rank:
        """Return the rank of one of the processes that share the work of this rank."""
        return Rank(self.number * processes + own, self.total * processes)


def rank_of(variables: Mapping[str, str]) -> Rank:
    """Return the rank that torchrun or a Slurm array has set, or the only one.

    Variables of torchrun (RANK, WORLD_SIZE) come before those of an array (SLURM_ARRAY_TASK_ID,
    ..._MIN, ..._MAX, ..._STEP).

    Raises:
        ValueError: if a variable is missing or no number, or the rank is out of range.
    """
    if "RANK" in variables or "WORLD_SIZE" in variables:
        number, count = (_number(variables, name) for name in ("RANK", "WORLD_SIZE"))
    elif "SLURM_ARRAY_TASK_ID" in variables:
        task, first, last = (
            _number(variables, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "MAX")
        )
        step = _number({"SLURM_ARRAY_TASK_STEP": "1", **variables}, "SLURM_ARRAY_TASK_STEP")
        number, count = (task - first) // max(step, 1), (last - first) // max(step, 1) + 1
        there = _number({_TASK_COUNT: str(count), **variables}, _TASK_COUNT)
        if there != count:
            raise ValueError(
                f"the Slurm array has {there} tasks from {first} to {last} with step {step};"
                f" expected {count}, since a missing task would leave its units undone: use"
                f" --array=0-{there - 1}"
            )
    else:
        return Rank()
    if not 0 <= number < count:
        raise ValueError(f"rank {number} of {count}: expected a rank from 0 to {count - 1}")
    return Rank(number, count)


def _number(variables: Mapping[str, str], name: str) -> int:
    text = variables.get(name, "")
    if not text.isdecimal():
        raise ValueError(
            f"{name} is {shown(text)}; expected a number, as torchrun or Slurm sets it"
        )
    return int(text)


def is_orphan() -> bool:
    """Return whether the command that started this process has ended."""
    parent = os.environ.get(PARENT)
    return parent is not None and parent != str(os.getppid())


def run_processes(arguments: Sequence[str], processes: int, rank: Rank) -> int:
    """Run the command in several processes on this machine, each a rank; return the exit code.

    Args:
        arguments: arguments of `fiber`, without --processes.
        processes: number of processes.
        rank: rank of this machine.

    Raises:
        ChildProcessError: if a process was killed; the message names its rank and the signal.
        KeyboardInterrupt: if this process got SIGINT.
    """
    threads = str(max(1, usable_cores() // processes))
    running: dict[int, subprocess.Popen[bytes]] = {}
    codes: dict[int, int] = {}
    # Processes print the same error once.
    notes = tempfile.TemporaryDirectory(prefix="fiber-map-")
    try:
        for own in range(processes):
            number, count = rank.among(processes, own)
            variables = {
                **os.environ,
                "RANK": str(number),
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(processes),
                "LOCAL_RANK": str(own),
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
                "FIBER_LAUNCH_DIR": notes.name,
                PARENT: str(os.getpid()),
            }
            command = [sys.executable, "-m", "fiber", *arguments]
            running[number] = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL)
        while running:
            time.sleep(_POLL_SECONDS)
            for number, process in list(running.items()):
                if (code := process.poll()) is not None:
                    codes[number] = code
                    del running[number]
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        notes.cleanup()
    killed = {number: -code for number, code in codes.items() if code < 0}
    if killed:
        number, signal_number = min(killed.items())
        name = signal.Signals(signal_number).name
        raise ChildProcessError(
            f"rank {number} of {rank.total * processes} was killed by {name}; run the command again"
            " to do the rest"
        )
    return max(codes.values(), default=0)
