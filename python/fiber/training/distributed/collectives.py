"""Collectives of small values and of weights; no-ops on a single process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fiber.training.distributed.processes import Processes


@torch.no_grad()
def broadcast_parameters(model: nn.Module, processes: Processes) -> None:
    """Broadcast weights and buffers from rank 0."""
    if processes.world_size > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.data, src=0)


def any_rank(flag: bool, processes: Processes) -> bool:
    """Return whether `flag` is True on any rank."""
    if processes.world_size == 1:
        return flag
    result = torch.tensor(int(flag), device=processes.device)
    dist.all_reduce(result, op=dist.ReduceOp.MAX)
    return bool(result)


def mean_over_ranks(values: Tensor, processes: Processes) -> Tensor:
    """Average a tensor over the ranks, in place."""
    if processes.world_size > 1:
        dist.all_reduce(values)
        values /= processes.world_size
    return values


def gather_objects(value: Any, processes: Processes) -> list[Any]:
    """Return the values of all ranks, by rank; they are pickled."""
    if processes.world_size == 1:
        return [value]
    gathered: list[Any] = [None] * processes.world_size
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_object(value: Any, processes: Processes) -> Any:
    """Return rank 0's value on every rank; it is pickled."""
    if processes.world_size == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def gather_results(value: Any, processes: Processes) -> list[Any]:
    """Like `gather_objects`, after long work that takes some ranks longer than others.

    Raises:
        LostRankError: see `wait_for_work`.
    """
    wait_for_work(processes)
    return gather_objects(value, processes)


def wait_for_work(processes: Processes) -> None:
    """Wait until all ranks call this, however long their work takes, as long as they live.

    Collectives wait for `train.timeout_seconds` at most. Without a heartbeat, in a process group of
    the caller, this does nothing, and the next collective waits.

    Raises:
        LostRankError: if a rank fails, dies or is stopped meanwhile.
    """
    if processes.heartbeat is not None:
        processes.heartbeat.barrier()


def wait_for_all(processes: Processes) -> None:
    """Synchronize the ranks."""
    if processes.world_size > 1:
        dist.barrier()
