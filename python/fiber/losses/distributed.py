"""Collectives for losses: sums over all ranks, and differentiable gathers of global batch rows.

A row is the tensor of one sample. The global batch is the concatenation of the batches of all
ranks, in rank order; without `torch.distributed`, it is the local batch.

A loss may depend on rows of every rank; the backward pass sums the gradients of each row over all
ranks. DistributedDataParallel averages gradients, so a loss of the form
`local_sum * world_size() / all_rank_sum(local_count)` trains like one process on the global batch.

Shapes: n rows on this rank (n may differ between ranks), G rows in the global batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the world size, or 1 if torch.distributed is not initialized."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_rank_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks and detach it; its shape must be the same on each rank."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def rank_mean(total: Tensor, own: Tensor, whole: Tensor | None = None) -> Tensor:
    """Scale a rank's sum, such that the mean over ranks is the mean over the global batch.

    Args:
        total: scalar, the sum over terms on this rank.
        own: int64 scalar, the number of terms on this rank; ignored if `whole` is given.
        whole: number of terms of the global batch, if known. For a part of this rank's rows, pass
            it, so that the results of all parts add up.

    Returns:
        total * world size / whole, or 0 if there are no terms.
    """
    whole = all_rank_sum(own) if whole is None else whole
    return total * world_size() / whole.clamp(min=1)


def rank() -> int:
    """Return the rank of this process, or 0 without torch.distributed."""
    return dist.get_rank() if world_size() > 1 else 0


def row_counts(rows: Tensor) -> tuple[int, ...]:
    """All-gather the number of rows on each rank."""
    if world_size() == 1:
        return (rows.shape[0],)
    count = torch.tensor([rows.shape[0]], device=rows.device)
    counts = count.new_empty(world_size())
    dist.all_gather_into_tensor(counts, count)
    return tuple(counts.tolist())


def all_rank_max(number: int, device: torch.device | str) -> int:
    """Return the maximum of a number over all ranks."""
    if world_size() == 1:
        return number
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def gather_rows(rows: Tensor, counts: tuple[int, ...] | None = None) -> Tensor:
    """Differentiably all-gather (n, ...) rows into a (G, ...) tensor.

    `counts` is the result of `row_counts`, if known.

    Raises:
        ValueError: if `counts` does not match the ranks or this rank's rows.
    """
    counts = row_counts(rows) if counts is None else counts
    _check_counts(rows, counts)
    if len(counts) == 1:
        return rows
    if rows.requires_grad and torch.is_grad_enabled():
        return _GatherRows.apply(rows, counts)
    return _all_gather(rows, counts)


def fetch_rows(
    rows: Tensor,
    indices: Tensor,
    counts: tuple[int, ...] | None = None,
    *,
    wanted: tuple[int, ...] | None = None,
) -> Tensor:
    """Differentiably gather rows of the global batch. Ranks send only requested rows.

    Args:
        rows: (n, ...) rows on this rank.
        indices: (m,) int64 rows of the global batch to fetch, in [0, G).
        counts: result of `row_counts`, if known.
        wanted: number of indices of each rank; default: `counts`, one for each of its rows.

    Returns:
        (m, ...) requested rows.

    Raises:
        ValueError: if `indices` is not an int64 tensor of `wanted` rows, or `counts` is
            inconsistent.
    """
    counts = row_counts(rows) if counts is None else counts
    _check_counts(rows, counts)
    wanted = counts if wanted is None else wanted
    expected = wanted[rank()]
    if indices.dtype != torch.int64 or tuple(indices.shape) != (expected,):
        raise ValueError(
            f"indices: expected torch.int64 of shape ({expected},), got {indices.dtype} of shape"
            f" {tuple(indices.shape)}"
        )
    if len(counts) == 1:
        return rows[indices]
    return _FetchRows.apply(rows, indices, counts, wanted)


def _check_counts(rows: Tensor, counts: tuple[int, ...]) -> None:
    if len(counts) != world_size() or counts[rank()] != rows.shape[0]:
        raise ValueError(
            f"expected one count per rank ({world_size()}), with counts[{rank()}] ="
            f" {rows.shape[0]}, got {counts}"
        )


def _all_gather(rows: Tensor, counts: tuple[int, ...]) -> Tensor:
    # Pad to equal sizes, for which every backend has a fast all-gather.
    most = max(counts)
    padded = rows.new_zeros((most, *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    gathered = rows.new_empty((most * len(counts), *rows.shape[1:]))
    dist.all_gather_into_tensor(gathered, padded)
    if min(counts) == most:
        return gathered
    return torch.cat([gathered[r * most : r * most + n] for r, n in enumerate(counts)])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.counts = counts
        return _all_gather(rows, counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        counts, (grad,) = ctx.counts, grads
        most = max(counts)
        padded = grad.new_zeros((len(counts), most, *grad.shape[1:]))
        for r, part in enumerate(grad.split(counts)):
            padded[r, : counts[r]] = part
        own = grad.new_empty((most, *grad.shape[1:]))
        dist.reduce_scatter_tensor(own, padded.flatten(0, 1))
        return own[: counts[rank()]], None


class _FetchRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        indices: Tensor,
        counts: tuple[int, ...],
        index_counts: tuple[int, ...],
    ) -> Tensor:
        starts = [sum(counts[:r]) for r in range(len(counts))]
        wanted = _all_gather(indices, index_counts).cpu().split(index_counts)
        own_start, own_end = starts[rank()], starts[rank()] + counts[rank()]
        sent = [w[(w >= own_start) & (w < own_end)] - own_start for w in wanted]
        owner = torch.bucketize(wanted[rank()], torch.tensor(starts), right=True) - 1
        # Rows arrive grouped by owner; `order` holds the position of each in the output.
        order = torch.argsort(owner, stable=True).to(rows.device)
        ctx.sent = torch.cat(sent).to(rows.device)
        ctx.send_sizes = [len(s) for s in sent]
        ctx.receive_sizes = torch.bincount(owner, minlength=len(counts)).tolist()
        ctx.order, ctx.rows_shape = order, rows.shape
        arrived = rows.new_empty((len(order), *rows.shape[1:]))
        dist.all_to_all_single(
            arrived, rows[ctx.sent].contiguous(), ctx.receive_sizes, ctx.send_sizes
        )
        fetched = torch.empty_like(arrived)
        fetched[order] = arrived
        return fetched

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        returned = grad.new_empty((len(ctx.sent), *grad.shape[1:]))
        dist.all_to_all_single(
            returned, grad[ctx.order].contiguous(), ctx.send_sizes, ctx.receive_sizes
        )
        gradient = grad.new_zeros(ctx.rows_shape).index_add_(0, ctx.sent, returned)
        return gradient, None, None, None


def wide(tensor: Tensor) -> Tensor:
    """Cast half precision to float32; keep float32 and float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
