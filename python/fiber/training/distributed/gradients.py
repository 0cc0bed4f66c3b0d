"""Average gradients over the ranks.

Every rank holds the whole model and a slice of each batch. Losses are normalized by counts over all
ranks, so averaging the ranks' gradients gives the gradient of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn

from fiber.training.distributed.processes import Processes

#: Elements per gradient all-reduce (32 MiB of float32).
BUCKET_ELEMENTS = 8 * 2**20


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
