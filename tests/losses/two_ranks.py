"""Run a function on two or more processes with gloo on the CPU and collect what it returns."""

from __future__ import annotations

import faulthandler
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def run_on_ranks(count: int, function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Return function(*args) of each of `count` ranks; it must be importable from a module."""
    start_server()
    mp.start_processes(
        _enter, (count, function, folder, args), nprocs=count, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _enter(
    rank: int, count: int, function: Callable[..., Any], folder: Path, args: tuple[Any, ...]
) -> None:
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=count
    )
    try:
        torch.save(function(*args), folder / f"{rank}.pt")
    finally:
        destroy_group()
