"""Gather sharded tensors, and shard whole ones; plain tensors stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    # Slow to import, and most runs are not sharded.
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: object) -> TypeGuard[DTensor]:
    """Return whether an object is a DTensor."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on every rank of its mesh; all of them must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def full_state(state: Any, *, keep: bool = True) -> Any:
    """Gather the sharded tensors of nested dicts and lists, one at a time, to the CPU.

    All ranks must call this. With `keep` False, this rank takes part but gets None for each, so
    that one rank can write a checkpoint without the memory of a whole copy on the others.
    """
    if isinstance(state, dict):
        return {name: full_state(value, keep=keep) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(full_state(value, keep=keep) for value in state)
    if not is_sharded(state):
        return state
    whole = state.full_tensor()
    return whole.cpu() if keep else None


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return `whole`, which is the same on all ranks, sharded like another tensor, by rows.

    It is also reshaped: a 0-D parameter has one dimension where it is sharded.
    """
    whole = whole.reshape(like.shape).to(like.device, like.dtype)
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import DTensor

    local = whole
    for dim, placement in enumerate(like.placements):
        if placement.is_shard():
            parts = local.chunk(like.device_mesh.size(dim))
            own = like.device_mesh.get_local_rank(dim)
            # The last ranks have no part of a small tensor.
            local = parts[own] if own < len(parts) else local[:0]
    return DTensor.from_local(
        local.clone(),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )


def sharded_rows(local: Tensor, rows: int) -> Tensor:
    """Return a DTensor of `rows` rows, of which this rank holds those of `torch.chunk`.

    It shares the memory of `local`. On a single process, this is `local` itself.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return local
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    shape = torch.Size((rows, *local.shape[1:]))
    return DTensor.from_local(
        local,
        init_device_mesh(local.device.type, (dist.get_world_size(),)),
        [Shard(0)],
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )


def local_rows(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this rank holds; a plain tensor stays as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor
