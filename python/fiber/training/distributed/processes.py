"""Process group, rank and device of a process under torchrun."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

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
