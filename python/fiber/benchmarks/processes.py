"""Run and measure each peer in its own process.

CPU time includes all child processes, so threads, workers and interprocess communication are all
counted. Only Linux is supported.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from fiber.benchmarks.peers import OURS, Peer
from fiber.benchmarks.peers.task import PeerTask

_WORKER = Path(__file__).with_name("peers") / "worker.py"
#: A peer that uses less CPU time than this between two polls is idle.
_IDLE_CPU_SECONDS = 0.0005
_POLL_SECONDS = 0.02
#: Maximum time to wait for a peer to become idle after its last batch.
_IDLE_TIMEOUT_SECONDS = 2.0
#: Timeout for starting a peer, including conversions, and for an epoch.
TIMEOUT_SECONDS = 1800.0
#: A peer is stuck if it does not respond and uses almost no CPU time for this long.
STUCK_SECONDS = 60.0
#: CPU use below this fraction of a core counts as almost none.
_STUCK_SHARE = 0.02
_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


class PeerError(RuntimeError):
    """Raised if a peer fails to load or run, or exits; the message gives the reason in one line."""


@dataclass(frozen=True, kw_only=True)
class EpochCost:
    """Cost of one epoch."""

    #: Number of images or texts.
    count: int
    #: User and system time of all processes of the peer.
    cpu_seconds: float
    #: Wall time until the last batch has arrived and the peer is idle.
    wall_seconds: float


class PeerProcess:
    """A running peer. Exiting the context kills the process and its children.

    Raises:
        PeerError: if the peer fails to load.
    """

    #: Versions by distribution name.
    versions: dict[str, str]
    #: Number of epochs run so far.
    epochs: int = 0

    def __init__(self, peer: Peer, task: PeerTask, python: str, log: Path) -> None:
        """Start a peer with the interpreter `python`, and redirect its standard error to `log`."""
        self.log = log
        with log.open("wb") as printed:
            self._process = subprocess.Popen(
                [python, str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                env=_environment(peer, python),
                # The process's children are found by session id.
                start_new_session=True,
            )
        order = {"module": peer.module, "distributions": peer.distributions, "task": asdict(task)}
        try:
            self.versions = self._request(order)["versions"]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def epoch(self, number: int, sample: Path | None = None) -> EpochCost:
        """Run one epoch, and save the start of the first batch to `sample` (.npy) if given.

        Raises:
            PeerError: if the epoch fails.
        """
        before, start = self.cpu_seconds(), time.perf_counter()
        count = self._request({"epoch": number, "sample": str(sample or "")})["count"]
        wall, cpu = time.perf_counter(), self.cpu_seconds()
        # Prefetching after the last batch counts toward this epoch, since batches prefetched before
        # its start counted toward the previous one.
        deadline, quiet = wall + _IDLE_TIMEOUT_SECONDS, 0
        while quiet < 2 and time.perf_counter() < deadline:
            time.sleep(_POLL_SECONDS)
            now = self.cpu_seconds()
            quiet = quiet + 1 if now - cpu < _IDLE_CPU_SECONDS else 0
            if not quiet:
                wall = time.perf_counter()
            cpu = now
        self.epochs += 1
        return EpochCost(count=count, cpu_seconds=cpu - before, wall_seconds=wall - start)

    def cpu_seconds(self) -> float:
        """Return the user and system time of the process and its children so far."""
        return sum(_process_cpu_seconds(pid) for pid in self._members())

    def peak_bytes(self) -> int:
        """Return the sum of the peak resident set sizes of the peer's live processes."""
        return sum(_peak_bytes(pid) for pid in self._members())

    def close(self) -> None:
        """Kill the process and its children."""
        members = self._members()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _members(self) -> list[int]:
        return members_of_session(self._process.pid)

    def _request(self, order: Mapping[str, Any]) -> dict[str, Any]:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(order).encode() + b"\n")
            stdin.flush()
            line = self._line()
        except BrokenPipeError:
            line = b""
        if not line:
            # The pipe closes slightly before the process exits.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
            code = self._process.returncode
            raise PeerError(f"process exited with code {code}: {self._last_log_line()}")
        response = json.loads(line)
        if "error" in response:
            raise PeerError(" ".join(response["error"].split()))
        return response

    def _line(self) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        now = time.monotonic()
        deadline, polled, cpu = now + TIMEOUT_SECONDS, now, self.cpu_seconds()
        while not select.select([stdout], [], [], min(1.0, STUCK_SECONDS))[0]:
            # Children may hold the pipe open after the process has exited.
            if self._process.poll() is not None:
                return b""
            now = time.monotonic()
            if now > deadline:
                raise PeerError(f"timed out: no response after {TIMEOUT_SECONDS:.0f} seconds")
            if now - polled >= STUCK_SECONDS:
                used = self.cpu_seconds() - cpu
                if used < _STUCK_SHARE * (now - polled):
                    raise PeerError(
                        f"stuck: no response, and {used:.2f} seconds of CPU time in the last"
                        f" {now - polled:.0f} seconds; last log line: {self._last_log_line()}"
                    )
                polled, cpu = now, cpu + used
        return stdout.readline()

    def _last_log_line(self) -> str:
        return (self.log.read_text(errors="replace").strip() or "no output").split("\n")[-1].strip()


def not_installed(peers: Iterable[Peer], pythons: Mapping[str, str]) -> dict[str, str]:
    """Return, for each peer that is not installed, what is missing and how to install it.

    `pythons` maps peers to interpreters other than the current one.
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
        installed = json.loads(done.stdout) if done.returncode == 0 else {}
        for peer in some:
            first = peer.distributions[0]
            install = peer.install or f"pip install {first}"
            # fiber runs from where this process imported it, whether installed or not.
            if peer is not OURS and first not in installed:
                reasons[peer.name] = f"{first} is not installed: {install}"
            elif peer.preload and not _library(peer.preload):
                reasons[peer.name] = f"{peer.preload} is not installed: {install}"
    return reasons


def members_of_session(leader: int) -> list[int]:
    """Return the ids of the live processes in a session, given the id of its leader."""
    pids = (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal())
    return [pid for pid in pids if (fields := _stat_fields(pid)) and int(fields[3]) == leader]


def _read_proc(pid: int, file: str) -> str:
    """Read a file of /proc/PID; return "" if the process has exited."""
    try:
        return Path(f"/proc/{pid}/{file}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state onward; [] if the process has exited."""
    # The process name before the state, in parentheses, may contain any characters.
    return _read_proc(pid, "stat").rpartition(")")[2].split()


def _process_cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process and of its exited children."""
    fields = _stat_fields(pid)
    if not fields:
        return 0.0
    ended = (int(fields[13]) + int(fields[14])) * _TICK_SECONDS
    try:
        # Linux's per-process CPU clock has nanosecond precision; /proc has 10 ms ticks.
        return time.clock_gettime((~pid << 3) | 2) + ended
    except OSError:
        return ended


def _peak_bytes(pid: int) -> int:
    peak = re.search(r"^VmHWM:\s*(\d+) kB", _read_proc(pid, "status"), re.MULTILINE)
    return int(peak[1]) * 1024 if peak else 0


def _environment(peer: Peer, python: str) -> dict[str, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **peer.environment}
    if python != sys.executable:
        # PYTHONPATH is for the current interpreter only.
        environment.pop("PYTHONPATH", None)
    elif peer is OURS:
        # Import the running package, even if a different copy is installed.
        paths = [str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if peer.preload:
        environment["LD_PRELOAD"] = _library(peer.preload)
    return environment


def _library(name: str) -> str:
    """Return the loadable name of a shared library, or "" if it is not found."""
    stem = name.removeprefix("lib").partition(".so")[0]
    return ctypes.util.find_library(stem) or ""
