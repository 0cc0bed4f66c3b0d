"""Peers in processes of their own: how they are started, asked for epochs, and measured.

CPU time is read for the process and everything that it started, so that threads, workers and their
traffic count alike. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from fiber.benchmarks.peers import OURS, Peer
from fiber.benchmarks.peers.task import Task

_WORKER = Path(__file__).with_name("peers") / "worker.py"
#: A peer whose processes used less CPU than this in a look has stopped working.
_QUIET_SECONDS = 0.0005
_LOOK_SECONDS = 0.02
#: Time in which a peer comes to rest after its last batch; one that never rests is not waited for.
_REST_SECONDS = 2.0
#: Time in which a peer must open, with its conversions, or finish an epoch.
TIMEOUT_SECONDS = 1800.0
#: A peer that owes an answer and used less than this share of a core for so long is stuck.
STUCK_SECONDS = 60.0
_STUCK_SHARE = 0.02
_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


class PeerError(RuntimeError):
    """A peer that does not load, failed or went away; the message says why in one line."""


@dataclass(frozen=True, kw_only=True)
class EpochCost:
    """What one pass cost."""

    #: Pictures or texts.
    count: int
    #: User and system time of all of the peer's processes.
    cpu_seconds: float
    #: From the order until the last batch was there and the peer came to rest.
    wall_seconds: float


class PeerProcess:
    """A peer at work; leaving the context ends it and what it started.

    Args:
        peer: which.
        task: what it does.
        python: its interpreter.
        log: file for what it prints.

    Attributes:
        versions: of the peer's distributions, once it is open.
        epochs: how many it ran.

    Raises:
        PeerError: if it does not load.
    """

    def __init__(self, peer: Peer, task: Task, python: str, log: Path) -> None:
        self.peer = peer
        self.log = log
        self.epochs = 0
        with log.open("wb") as printed:
            self._process = subprocess.Popen(
                [python, str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                env=_environment(peer, python),
                # A session of its own, by which all that it starts is found.
                start_new_session=True,
            )
        order = {"module": peer.module, "distributions": peer.distributions, "task": task.to_json()}
        try:
            self.versions: dict[str, str] = self._ask(order)["versions"]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def epoch(self, number: int, sample: Path | None = None) -> EpochCost:
        """Let it pass over its data once.

        Args:
            number: which epoch.
            sample: file for the first pictures of the first batch, as `numpy.save` writes it.

        Raises:
            PeerError: if it fails.
        """
        before, start = self.cpu_seconds(), time.perf_counter()
        count = self._ask({"epoch": number, "sample": str(sample or "")})["count"]
        wall, cpu = time.perf_counter(), self.cpu_seconds()
        # What is made ahead after the last batch belongs to this epoch as what was there at its
        # start belonged to the one before.
        deadline, quiet = wall + _REST_SECONDS, 0
        while quiet < 2 and time.perf_counter() < deadline:
            time.sleep(_LOOK_SECONDS)
            now = self.cpu_seconds()
            quiet = quiet + 1 if now - cpu < _QUIET_SECONDS else 0
            if not quiet:
                wall = time.perf_counter()
            cpu = now
        self.epochs += 1
        return EpochCost(count=count, cpu_seconds=cpu - before, wall_seconds=wall - start)

    def cpu_seconds(self) -> float:
        """User and system time of the process and its children so far."""
        return sum(_process_cpu_seconds(pid) for pid in self._members())

    def peak_bytes(self) -> int:
        """Sum of the largest resident sizes that its living processes had so far."""
        return sum(_peak_bytes(pid) for pid in self._members())

    def close(self) -> None:
        """End it and everything that it started."""
        members = self._members()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()

    def _members(self) -> list[int]:
        return members_of_session(self._process.pid)

    def _ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        try:
            stdin = _opened(self._process.stdin)
            stdin.write(json.dumps(order).encode() + b"\n")
            stdin.flush()
            line = self._line()
        except BrokenPipeError:
            line = b""
        if not line:
            # Its output is closed a moment before it is gone.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
            code = self._process.returncode
            raise PeerError(f"its process ended (exit code {code}): {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(" ".join(answer["error"].split()))
        return answer

    def _line(self) -> bytes:
        stdout = _opened(self._process.stdout)
        now = time.monotonic()
        deadline, looked, cpu = now + TIMEOUT_SECONDS, now, self.cpu_seconds()
        while not select.select([stdout], [], [], min(1.0, STUCK_SECONDS))[0]:
            # Its children may hold the pipe open when it is gone.
            if self._process.poll() is not None:
                return b""
            now = time.monotonic()
            if now > deadline:
                raise PeerError(f"no answer in {TIMEOUT_SECONDS:.0f} seconds")
            if now - looked >= STUCK_SECONDS:
                used = self.cpu_seconds() - cpu
                if used < _STUCK_SHARE * (now - looked):
                    raise PeerError(
                        f"stuck: no answer, and {used:.2f} seconds of CPU in the last"
                        f" {now - looked:.0f}; it last said: {self._last_words()}"
                    )
                looked, cpu = now, cpu + used
        return stdout.readline()

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def installed(peers: Iterable[Peer], pythons: Mapping[str, str]) -> dict[str, str]:
    """Say for every peer that is absent why; the others are not in the answer.

    Args:
        peers: whom to look for.
        pythons: interpreter of each peer by its name; without one, this process's.
    """
    reasons: dict[str, str] = {}
    by_python: dict[str, list[Peer]] = {}
    for peer in peers:
        by_python.setdefault(pythons.get(peer.name, sys.executable), []).append(peer)
    for python, some in by_python.items():
        names = sorted({peer.distributions[0] for peer in some})
        done = subprocess.run(
            [python, str(_WORKER), "--versions", *names],
            capture_output=True,
            text=True,
            check=False,
        )
        found = json.loads(done.stdout) if done.returncode == 0 else {}
        for peer in some:
            # Ours runs from wherever this process imported it, installed or not.
            if peer is not OURS and peer.distributions[0] not in found:
                reasons[peer.name] = f"{peer.distributions[0]} is not installed: {peer.install}"
            elif peer.preload and not _library(peer.preload):
                reasons[peer.name] = f"{peer.preload} is not installed: {peer.install}"
    return reasons


def members_of_session(leader: int) -> list[int]:
    """List the living processes of a session by the process that began it."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            fields = _stat_fields(int(folder.name))
            if fields and int(fields[3]) == leader:
                found.append(int(folder.name))
    return found


def _stat_fields(pid: int) -> list[str]:
    """Give the fields of /proc/PID/stat from the state on; none for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The name before it, in brackets, may hold anything.
    return text.rpartition(")")[2].split()


def _process_cpu_seconds(pid: int) -> float:
    """User and system time of a process, and of its children that have ended."""
    fields = _stat_fields(pid)
    if not fields:
        return 0.0
    ended = (int(fields[13]) + int(fields[14])) * _TICK_SECONDS
    try:
        # Linux's clock of another process, in nanoseconds; /proc has ticks of ten milliseconds.
        return time.clock_gettime((~pid << 3) | 2) + ended
    except OSError:
        return ended


def _peak_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    peak = next((line for line in lines if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(peak.split()[1]) * 1024


def _environment(peer: Peer, python: str) -> dict[str, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **peer.environment}
    if python != sys.executable:
        # Meant for this interpreter.
        environment.pop("PYTHONPATH", None)
    elif peer is OURS:
        # The package that runs now, whatever else is installed.
        paths = [str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if peer.preload:
        environment["LD_PRELOAD"] = _library(peer.preload)
    return environment


def _library(name: str) -> str:
    """Give what a shared library is loaded by; "" where there is none."""
    stem = name.removeprefix("lib").partition(".so")[0]
    return ctypes.util.find_library(stem) or ""


def _opened(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
