"""Run a function on two or more processes with gloo on the CPU and collect what it returns."""

from __future__ import annotations

import faulthandler
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fiber.training.distributed.processes import destroy_group
from tests.processes import start_server

#: Seconds after which a rank prints the stacks of its threads and ends.
LONGEST = 300.0


def run_on_two_ranks(function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Return [function(*args) of rank 0, of rank 1]; it must be importable from a module."""
    return run_on_ranks(2, function, folder, *args)


def run_on_ranks(
    count: int,
    function: Callable[..., Any],
    folder: Path,
    *args: Any,
    longest: float = LONGEST,
) -> list[Any]:
    """Return function(*args) of each of `count` ranks; it must be importable from a module."""
    start_server()
    # A new name each time: ranks that found a file of earlier ranks would read their addresses.
    store = f"file://{folder / f'store-{uuid4().hex}'}"
    arguments = (count, store, function, folder, args, longest)
    mp.start_processes(_enter, arguments, nprocs=count, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def run_as_one_of(world_size: int, function: Callable[..., Any], folder: Path, *args: Any) -> Any:
    """Return function(*args) of rank 0 of many ranks that do not exist.

    Collectives return at once. Gathers repeat this rank's own rows; other results are not set.
    """
    start_server()
    arguments = (world_size, function, folder, args)
    mp.start_processes(_enter_alone, arguments, nprocs=1, start_method="forkserver")
    return torch.load(folder / "0.pt", weights_only=True)


def _enter_alone(
    rank: int, world_size: int, function: Callable[..., Any], folder: Path, args: tuple[Any, ...]
) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    faulthandler.dump_traceback_later(LONGEST, exit=True)
    torch.set_num_threads(1)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    torch.save(function(*args), folder / "0.pt")


def _enter(
    rank: int,
    count: int,
    store: str,
    function: Callable[..., Any],
    folder: Path,
    args: tuple[Any, ...],
    longest: float,
) -> None:
    faulthandler.dump_traceback_later(longest, exit=True)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    try:
        torch.save(function(*args), folder / f"{rank}.pt")
    finally:
        destroy_group()
