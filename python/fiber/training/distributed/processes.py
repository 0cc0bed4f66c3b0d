"""Process group, rank and device of a process started by torchrun or `fiber train --processes`."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist

from fiber.checkpoints.load import parse_device
from fiber.training.distributed.heartbeat import Heartbeat

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

#: Longest time in seconds until all ranks of a job have found each other.
START_SECONDS = 300.0
#: How long `destroy_group` waits for the threads of gloo.
GLOO_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Rank, world size and device of this process."""

    rank: int
    world_size: int
    device: torch.device
    #: Longest time that a rank waits for the others in a collective.
    timeout_seconds: float = 600.0
    #: Life signs of all ranks; None on a single process and in a process group of the caller.
    heartbeat: Heartbeat | None = field(default=None, repr=False, compare=False)

    @property
    def is_first(self) -> bool:
        """True on rank 0, which writes files and messages."""
        return self.rank == 0

    def new_group(self, backend: str | None = None) -> dist.ProcessGroup:
        """Return another process group of all ranks, with the same timeout.

        PyTorch's own default is that of its backends, not that of the first group.
        """
        timeout = timedelta(seconds=self.timeout_seconds)
        return cast(dist.ProcessGroup, dist.new_group(backend=backend, timeout=timeout))


@contextmanager
def joined(
    device: str | torch.device | None = None, *, timeout_seconds: float = 600.0
) -> Iterator[Processes]:
    """Initialize the process group under torchrun.

    Args:
        device: default: CUDA if available, and then the GPU of the local rank.
        timeout_seconds: longest time that a rank waits for the others in a collective.

    Raises:
        ValueError: if the device is invalid, or torchrun's environment is incomplete or requires a
            GPU that does not exist.
        ConnectionError: if not all ranks are there after `START_SECONDS`.
    """
    rank, world_size, local_rank = _torchrun_environment()
    kind = parse_device(device or None)
    if kind.type == "cuda":
        index = local_rank if world_size > 1 or kind.index is None else kind.index
        if index >= torch.cuda.device_count():
            raise ValueError(
                f"local rank {local_rank} needs CUDA device {index}, but the CUDA device count is"
                f" {torch.cuda.device_count()}; start fewer processes or use device='cpu'"
            )
        kind = torch.device("cuda", index)
        torch.cuda.set_device(kind)
    # The caller's process group, if any, is used but not destroyed.
    if world_size == 1 or dist.is_initialized():
        yield Processes(
            rank=rank, world_size=world_size, device=kind, timeout_seconds=timeout_seconds
        )
        return
    _initialize(rank, world_size, kind, timeout_seconds)
    # A store of the agents outlives the processes: keys of an earlier start must not be read.
    start = [secrets.token_hex(8)]
    dist.broadcast_object_list(start, src=0)
    keys = dist.PrefixStore(  # pyright: ignore[reportPrivateImportUsage]
        f"heartbeat/{start[0]}", _open_store(rank, world_size)
    )
    heartbeat = Heartbeat(keys, rank, world_size, timeout_seconds=timeout_seconds)
    try:
        with heartbeat:
            yield Processes(
                rank=rank,
                world_size=world_size,
                device=kind,
                timeout_seconds=timeout_seconds,
                heartbeat=heartbeat,
            )
    finally:
        destroy_group()


def _initialize(rank: int, world_size: int, device: torch.device, timeout_seconds: float) -> None:
    """Initialize the default process group."""
    try:
        store = _open_store(rank, world_size, is_server=rank == 0)
        _wait_for_ranks(store, rank, world_size)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_seconds),
        )
        # NCCL connects at the first collective only.
        dist.barrier()
    except RuntimeError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConnectionError(
            f"rank {rank} cannot reach the {world_size - 1} other ranks by way of {where}:"
            f" {error}".splitlines()[0]
        ) from error


def _wait_for_ranks(
    store: Store, rank: int, world_size: int, *, longest: float = START_SECONDS
) -> None:
    """Wait until all ranks have connected to the store.

    PyTorch would wait for them in C++, where a signal is not handled.

    Raises:
        ConnectionError: if they have not after `longest` seconds.
    """
    store.set(f"here/{rank}", "")
    keys = [f"here/{each}" for each in range(world_size)]
    end, pause = time.monotonic() + longest, 0.01
    while not store.check(keys):
        if time.monotonic() > end:
            missing = [str(each) for each, key in enumerate(keys) if not store.check([key])]
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise ConnectionError(
                f"ranks {', '.join(missing[:8])}{more} of {world_size} are not there after"
                f" {longest:g} s"
            )
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _open_store(rank: int, world_size: int, *, is_server: bool = False) -> Store:
    """Connect to the store of the job.

    Under torchrun the agent may host it. The agent's store outlives the processes, so each start
    has keys of its own: otherwise a restarted rank finds the addresses of processes that are gone,
    and waits for them. Agents of several nodes count their restarts apart, so they have none.
    """
    has_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size,
        is_master=is_server and not has_agent,
        timeout=timedelta(seconds=START_SECONDS),
        wait_for_workers=False,
        multi_tenant=True,
    )
    is_alone = os.environ.get("GROUP_WORLD_SIZE") == "1"
    prefix = f"fiber/{restart_count() if has_agent and is_alone else 0}"
    return dist.PrefixStore(prefix, store)  # pyright: ignore[reportPrivateImportUsage]


def destroy_group() -> None:
    """Destroy the default process group.

    Before torch 2.8 the destructor of a gloo group keeps the GIL while it joins its threads, and a
    thread that still drops the tensors of its last operation waits for the GIL forever
    (pytorch/pytorch#154976). A moment without the GIL lets the threads finish.
    """
    if dist.get_backend() == "gloo":
        time.sleep(GLOO_PAUSE_SECONDS)
    dist.destroy_process_group()


def restart_count() -> int:
    """Return how often the agent of torchrun has restarted the processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def launch_id() -> str:
    """Return what all starts of a job by torchrun have in common; empty without torchrun."""
    found = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if found == "none":
        # torchrun's default, which unrelated jobs share. The agent itself outlives its processes.
        return f"agent {os.getppid()} on {socket.gethostname()}"
    return found


def _torchrun_environment() -> tuple[int, int, int]:
    """Return (rank, world size, local rank); (0, 1, 0) without torchrun."""
    if dist.is_available() and dist.is_initialized():
        rank = dist.get_rank()
        return rank, dist.get_world_size(), int(os.environ.get("LOCAL_RANK", rank))
    if os.environ.get("WORLD_SIZE") is None:
        return 0, 1, 0
    names = ["RANK", "LOCAL_RANK"]
    if os.environ["WORLD_SIZE"] != "1":
        names += ["MASTER_ADDR", "MASTER_PORT"]
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is set but {', '.join(missing)} is not; start the processes with"
            " `fiber train ... --processes N`, or with torchrun"
        )
    numbers = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(
            f"expected numbers in RANK, WORLD_SIZE, LOCAL_RANK, got {', '.join(numbers)}"
        )
    rank, world_size, local_rank = map(int, numbers)
    return rank, world_size, local_rank
