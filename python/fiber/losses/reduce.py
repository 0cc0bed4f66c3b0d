"""Sums over all ranks, for normalisers that make N processes equal one with the whole batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Count the processes that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_rank_sum(tensor: Tensor) -> Tensor:
    """Add a tensor up over all ranks, without gradient.

    DistributedDataParallel averages gradients, so a loss that is
    `local_sum * world_size() / all_rank_sum(local_count)` trains as one process with the whole
    batch would.

    Args:
        tensor: any shape, the same on every rank.

    Returns:
        The sum, on every rank; the detached tensor itself without torch.distributed.
    """
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
