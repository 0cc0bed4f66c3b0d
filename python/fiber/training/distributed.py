"""Data-parallel training under torchrun: process group, gradient averaging, broadcasts.

Every rank holds the whole model and a slice of each batch. Losses are normalized by counts over all
ranks, so averaging the ranks' gradients gives the gradient of the whole batch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

#: Elements per gradient all-reduce (32 MiB of float32).
BUCKET_ELEMENTS = 8 * 2**20
#: Timeout of collectives in hours. It is long because all ranks wait while rank 0 validates.
LONGEST_WAIT_HOURS = 6
#: How long `destroy_group` waits for the threads of gloo.
GLOO_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Rank, world size and device of this process."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True on rank 0, which writes files and messages."""
        return self.rank == 0


@contextmanager
def joined(device: str | torch.device | None = None) -> Iterator[Processes]:
    """Initialize the process group under torchrun; `device` defaults to CUDA if available.

    Raises:
        ValueError: if torchrun's environment is incomplete or requires a GPU that does not exist.
    """
    rank, world_size, local_rank = _torchrun_environment()
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
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
    own_group = world_size > 1 and not dist.is_initialized()
    if own_group:
        dist.init_process_group(
            "nccl" if kind.type == "cuda" else "gloo", timeout=timedelta(hours=LONGEST_WAIT_HOURS)
        )
    try:
        yield Processes(rank=rank, world_size=world_size, device=kind)
    finally:
        if own_group:
            destroy_group()


def destroy_group() -> None:
    """Destroy the default process group.

    Before torch 2.8 the destructor of a gloo group keeps the GIL while it joins its threads, and a
    thread that still drops the tensors of its last operation waits for the GIL forever
    (pytorch/pytorch#154976). A moment without the GIL lets the threads finish.
    """
    if dist.get_backend() == "gloo":
        time.sleep(GLOO_PAUSE_SECONDS)
    dist.destroy_process_group()


def _torchrun_environment() -> tuple[int, int, int]:
    """Return (rank, world size, local rank); (0, 1, 0) without torchrun."""
    if dist.is_available() and dist.is_initialized():
        rank = dist.get_rank()
        return rank, dist.get_world_size(), int(os.environ.get("LOCAL_RANK", rank))
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    values = [os.environ.get(name) for name in names]
    if values[1] is None:
        return 0, 1, 0
    missing = [name for name, value in zip(names, values, strict=True) if value is None]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is set but {', '.join(missing)} is not; start the processes with"
            " `torchrun --nproc-per-node N -m fiber.cli train ...`"
        )
    return int(values[0] or 0), int(values[1]), int(values[2] or 0)


@torch.no_grad()
def broadcast_parameters(model: nn.Module, processes: Processes) -> None:
    """Broadcast weights and buffers from rank 0."""
    if processes.world_size > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.data, src=0)


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], processes: Processes) -> None:
    """Average gradients over the ranks, in flat buckets.

    A gradient that is None on every rank stays None, so the optimizer skips the parameter, as on a
    single process. A gradient that is None on only some ranks counts as 0 there.
    """
    if processes.world_size == 1:
        return
    used = torch.tensor(
        [parameter.grad is not None for parameter in parameters],
        dtype=torch.int32,
        device=processes.device,
    )
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    shared = [p for p, flag in zip(parameters, used.tolist(), strict=True) if flag]
    for bucket in _buckets(shared):
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in bucket]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= processes.world_size
        parts = flat.split([p.numel() for p in bucket])
        for parameter, part in zip(bucket, parts, strict=True):
            parameter.grad = part.view_as(parameter)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Group parameters into buckets of `BUCKET_ELEMENTS`; a larger parameter has its own bucket."""
    bucket: list[nn.Parameter] = []
    elements = 0
    for parameter in parameters:
        if bucket and elements + parameter.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket, elements = [], 0
        bucket.append(parameter)
        elements += parameter.numel()
    if bucket:
        yield bucket


def any_rank(flag: bool, processes: Processes) -> bool:
    """Return whether `flag` is True on any rank."""
    if processes.world_size == 1:
        return flag
    found = torch.tensor(int(flag), device=processes.device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found)


def mean_over_ranks(values: Tensor, processes: Processes) -> Tensor:
    """Average a tensor over the ranks, in place."""
    if processes.world_size > 1:
        dist.all_reduce(values)
        values /= processes.world_size
    return values


def broadcast_from_rank0(value: float, processes: Processes) -> float:
    """Return rank 0's value on every rank."""
    if processes.world_size == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=processes.device)
    dist.broadcast(shared, src=0)
    return float(shared)


def wait_for_all(processes: Processes) -> None:
    """Synchronize the ranks."""
    if processes.world_size > 1:
        dist.barrier()
