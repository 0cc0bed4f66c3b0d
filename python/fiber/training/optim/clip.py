"""Gradient clipping."""

# pyright: reportPrivateImportUsage=false
# The functions on lists of tensors, as used by torch.optim, are not exported.

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fiber.training.distributed.full_tensor import is_sharded, local_rows


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Clip the L2 norm of the gradient to `limit`; return the norm before clipping.

    Where gradients are sharded, all ranks must call this.
    """
    gradients = [each.grad for each in parameters if each.grad is not None]
    sharded = next(filter(is_sharded, gradients), None)
    if sharded is None:
        return nn.utils.clip_grad_norm_(parameters, limit, foreach=True)
    # PyTorch's function works out how each list of DTensors is sharded: seconds in a first step.
    parts = [local_rows(gradient) for gradient in gradients]
    square = torch.stack(torch._foreach_norm(parts)).square().sum()
    for dim, placement in enumerate(sharded.placements):
        if placement.is_shard():
            dist.all_reduce(square, group=sharded.device_mesh.get_group(dim))
    norm = square.sqrt()
    torch._foreach_mul_(parts, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
