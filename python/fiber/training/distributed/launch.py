"""Start a command in several processes, by the elastic agent of torchrun.

The agent restarts the processes of its node when one of them dies, and joins nodes through a
rendezvous of the backend c10d, which a restart survives.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import DEFAULT_PORT
from torch.distributed.elastic.rendezvous.utils import (
    _matches_machine_hostname,
    parse_rendezvous_endpoint,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fiber import bad_input
from fiber.env import usable_cores
from fiber.training.distributed.preemption import EXIT_CODE

#: Folder in which the processes of one agent leave notes, and the note of bad input; see
#: `fiber.cli.launched`.
NOTES, BAD_INPUT = "FIBER_LAUNCH_DIR", "bad-input"
#: Exit code of `launch` after Ctrl-C.
INTERRUPTED = 130
#: Signals that `launch` or the agent handles.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
#: Seconds that processes have to save their step after a signal.
SAVE_SECONDS = 600
#: Seconds that nodes have to join, and to join after the smallest number of nodes is there.
JOIN_SECONDS, LAST_CALL_SECONDS = 900, 5


@dataclass(frozen=True, kw_only=True)
class Job:
    """Where and how often the processes of a job start."""

    #: Processes on each node.
    processes: int
    #: Smallest and largest number of nodes.
    nodes: tuple[int, int] = (1, 1)
    #: Restarts after a process died.
    restarts: int = 3
    #: HOST:PORT of the node that hosts the rendezvous; required for more than one node.
    rendezvous: str = ""
    #: Equal on all nodes, and different for other jobs; required for more than one node.
    id: str = ""

    def __post_init__(self) -> None:
        least, most = self.nodes
        if not 1 <= least <= most:
            raise ValueError(f"--nodes: expected 1 <= I <= J, got {least}:{most}")
        if self.processes < 1 or self.restarts < 0:
            raise ValueError(
                "expected --processes of 1 or more and --restarts of 0 or more, got"
                f" {self.processes} and {self.restarts}"
            )
        if most > 1 and not (self.rendezvous and self.id):
            raise ValueError(
                "--nodes: more than one node needs --rendezvous HOST:PORT, which names one of the"
                " nodes, and --job ID, equal on all nodes"
            )
        if most > 1 and not self.rendezvous.rpartition(":")[2].isdecimal():
            raise ValueError(f"--rendezvous: expected HOST:PORT, got {self.rendezvous!r}")


def devices_on_node() -> int:
    """Return the number of processes for `--processes auto`: one a GPU, or one on a CPU."""
    return max(1, torch.cuda.device_count())


def launch(arguments: Sequence[str], job: Job) -> int:
    """Run `fiber ARGUMENTS` in every process of this node until all have ended.

    Returns:
        Exit code: 0; 2 for bad input, which is not tried again; 75 after a signal, when every
        process has saved its step; 130 after Ctrl-C.

    Raises:
        ValueError: if this process was itself started by torchrun.
        ChildProcessError: if a process died, and no restart is left.
        ConnectionError: if the nodes do not meet.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "--processes: torchrun has started this process already; use one of the two"
        )
    with (
        tempfile.TemporaryDirectory(prefix="fiber-launch-") as notes,
        _environment(job, notes),
        _signals(),
    ):
        _quiet_agent(Path(notes))
        try:
            node = _Node("localhost")
            if job.nodes[1] > 1:
                print(
                    f"job {job.id}: waiting for {job.nodes[0]} nodes at {job.rendezvous}",
                    flush=True,
                )
                node = _wait_for_host(job.rendezvous)
            start = elastic_launch(_config(job, node), sys.executable)
            # Files of the working directory are no modules (-P), as for the command `fiber`.
            start("-P", "-m", "fiber.cli", *arguments)
        except SignalException as stop:
            return INTERRUPTED if stop.sigval == signal.SIGINT else EXIT_CODE
        except ChildFailedError as error:
            return _explain(error, job, Path(notes))
        except RendezvousError as error:
            if (Path(notes) / BAD_INPUT).exists():
                # The node that hosts the rendezvous has ended for it.
                return bad_input.EXIT_CODE
            where = job.rendezvous or "this node"
            reason = error or type(error).__name__
            raise ConnectionError(f"the rendezvous at {where} failed: {reason}") from error
    return 0


@contextmanager
def _environment(job: Job, notes: str) -> Iterator[None]:
    """Set the variables that processes inherit; those of the user take precedence."""
    before = dict(os.environ)
    # Each process would otherwise start a thread for every core of the node.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // job.processes)))
    if job.nodes[1] > 1:
        # With a store that the agents share, a node that joins later waits for an address that the
        # others no longer write (torch 2.15: `DynamicRendezvousHandler.next_rendezvous`). Without
        # it, rank 0 hosts a store.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ[NOTES] = notes
    try:
        yield
    finally:
        # The agent sets some, too.
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _signals() -> Iterator[None]:
    """Handle the signals that end a run, until all processes have ended."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    # torchrun's agent handles the other signals that end a run in the same way, SIGTERM too once
    # processes run. Before, the first process of a container would ignore it.
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, _raise_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


class _Node(NamedTuple):
    """How the nodes of a job see this one."""

    #: A name or an address that the others can reach. The agent itself takes the host name, which
    #: they may not be able to resolve.
    address: str
    #: Whether this node hosts the rendezvous; None where the agent sees it from the name.
    is_host: bool | None = None


def _wait_for_host(rendezvous: str, *, longest: float = JOIN_SECONDS) -> _Node:
    """Wait until the node of the rendezvous listens, unless this node is it.

    The agent itself waits for 60 seconds only, and nodes may start minutes apart, for example where
    each pulls a container image first.

    Raises:
        ValueError: if `rendezvous` is not HOST:PORT.
        ConnectionError: if the node does not listen after `longest` seconds.
    """
    host, port = parse_rendezvous_endpoint(rendezvous, default_port=DEFAULT_PORT)
    if _matches_machine_hostname(host):
        return _Node(host)
    end = time.monotonic() + longest
    is_told = False
    while True:
        try:
            with socket.create_connection((host, port), timeout=5) as connection:
                return _Node(connection.getsockname()[0])
        except OSError as error:
            # The agent compares the addresses of its host name, which is often that of the loopback
            # interface (127.0.1.1 on Debian and Ubuntu).
            if _is_own(host):
                return _Node(host, is_host=True)
            # The name of a node that has not started may be unknown until it does.
            if time.monotonic() >= end:
                raise ConnectionError(
                    f"the rendezvous at {rendezvous} does not answer after {longest:g} s: {error};"
                    " expected the host name or the address of one of the nodes"
                ) from error
            if not is_told:
                is_told = True
                print(f"the rendezvous at {rendezvous} does not answer yet: {error}", flush=True)
        time.sleep(1)


def _is_own(host: str) -> bool:
    """Check whether a name or an address is that of an interface of this machine."""
    try:
        addresses = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except OSError:
        return False
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as probe, suppress(OSError):
            probe.bind(address)
            return True
    return False


def _quiet_agent(notes: Path) -> None:
    """Log which process failed, but not each process that the agent ends.

    After bad input, the processes end as soon as they are restarted, which is not logged.
    """
    for name in ("agent.server.api", "multiprocessing.api"):
        logger = logging.getLogger(f"torch.distributed.elastic.{name}")
        logger.setLevel(logging.ERROR)
        logger.addFilter(lambda record: not (notes / BAD_INPUT).exists())


def _config(job: Job, node: _Node) -> LaunchConfig:
    several = job.nodes[1] > 1
    values: dict[str, Any] = {
        "min_nodes": job.nodes[0],
        "max_nodes": job.nodes[1],
        "nproc_per_node": job.processes,
        "run_id": job.id or str(uuid.uuid4()),
        "rdzv_backend": "c10d",
        "rdzv_endpoint": job.rendezvous if several else "localhost:0",
        "rdzv_configs": {"timeout": JOIN_SECONDS, "last_call_timeout": LAST_CALL_SECONDS},
        "max_restarts": job.restarts,
        "shutdown_timeout": SAVE_SECONDS,
        "local_addr": node.address,
    }
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        # Under nohup, which torch 2.6 has no setting for.
        values["signals_to_handle"] = "SIGTERM,SIGINT,SIGQUIT"
    if node.is_host is not None:
        values["rdzv_configs"]["is_host"] = node.is_host
    # torch 2.6 has no `shutdown_timeout`; it waits 30 seconds.
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    return LaunchConfig(**{name: value for name, value in values.items() if name in known})


def _explain(error: ChildFailedError, job: Job, notes: Path) -> int:
    """Return the exit code if it has a meaning, else raise ChildProcessError."""
    codes = {each.exitcode for each in error.failures.values()}
    if bad_input.EXIT_CODE in codes:
        return bad_input.EXIT_CODE
    if codes == {EXIT_CODE}:
        return EXIT_CODE
    rank, failure = error.get_first_failure()
    how = f"ended with exit code {failure.exitcode}"
    if failure.exitcode < 0:
        how = f"was killed by {signal.Signals(-failure.exitcode).name}"
    tried = f", after {job.restarts} restarts" if job.restarts else ""
    note = notes / f"error-{failure.pid}"
    reason = f": {note.read_text()}" if note.exists() else ""
    raise ChildProcessError(
        f"rank {rank} (process {failure.pid}) {how}{tried}{reason}; --resume continues the run"
    ) from error


def _raise_signal(number: int, frame: object) -> None:
    kind = signal.Signals(number)
    raise SignalException(f"process {os.getpid()} got {kind.name}", sigval=kind)
