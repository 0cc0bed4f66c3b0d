"""Muon, an optimizer of matrices, with AdamW for all other parameters."""

# pyright: reportPrivateImportUsage=false
# The functions on lists of tensors, as used by torch.optim, are not exported.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fiber.training.distributed.full_tensor import full_tensor, shard_like
from fiber.training.optim.adamw import AdamW

#: Coefficients and number of steps of the Newton-Schulz iteration, and momentum (Jordan 2024).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5
_MUON_MOMENTUM = 0.95
#: Root mean square of an update of AdamW, which that of Muon is scaled to (Liu et al. 2025).
_UPDATE_RMS = 0.2
#: Elements of the matrices that are whole on every rank at a time (32 MiB of float32).
_BUCKET_ELEMENTS = 8 * 2**20


class _Matrix(NamedTuple):
    """A matrix to update, and its group of parameters."""

    parameter: Tensor
    group: dict[str, Any]


class MuonAdamW(AdamW):
    """Muon for the groups with `by_muon`, and AdamW for the others.

    Muon replaces the momentum of a matrix by the nearest matrix with orthogonal rows or columns.
    Each rank does so for its part of the matrices, and all ranks exchange the results.

    Source: Jordan et al. 2024, with the scale of updates of Liu et al. 2025. PyTorch has the same
    since version 2.9, as an optimizer of its own that takes no other parameters.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["by_muon"]]
            super().step()
        finally:
            self.param_groups = groups
        matrices = [
            _Matrix(parameter, group)
            for group in groups
            if group["by_muon"]
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        for bucket in _buckets(matrices):
            self._update(bucket)

    def _update(self, matrices: Sequence[_Matrix]) -> None:
        parameters = [matrix.parameter for matrix in matrices]
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        momenta = [self._momentum(parameter) for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - _MUON_MOMENTUM)
        # Nesterov's form of the momentum.
        updates = torch._foreach_lerp(gradients, momenta, _MUON_MOMENTUM)
        directions = _orthogonalized_by_ranks([full_tensor(update) for update in updates])
        shards = [shard_like(*pair) for pair in zip(directions, parameters, strict=True)]
        by_rate: dict[tuple[float, float], tuple[list[Tensor], list[Tensor]]] = {}
        for (parameter, group), direction in zip(matrices, shards, strict=True):
            changed = by_rate.setdefault((group["lr"], group["weight_decay"]), ([], []))
            changed[0].append(parameter)
            changed[1].append(direction)
        for (lr, weight_decay), (changed, by) in by_rate.items():
            torch._foreach_mul_(changed, 1 - lr * weight_decay)
            torch._foreach_add_(changed, by, alpha=-lr)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            # AdamW, which loads the states of all groups, expects a step in each.
            state["step"] = torch.tensor(0.0)
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]


def _buckets(matrices: Sequence[_Matrix]) -> Iterator[list[_Matrix]]:
    """Group matrices into buckets of `_BUCKET_ELEMENTS`; a larger one has its own bucket."""
    bucket: list[_Matrix] = []
    elements = 0
    # Matrices of one shape, or its transpose, are orthogonalized together.
    for matrix in sorted(matrices, key=lambda matrix: sorted(matrix.parameter.shape)):
        count = matrix.parameter.numel()
        if bucket and elements + count > _BUCKET_ELEMENTS:
            yield bucket
            bucket, elements = [], 0
        bucket.append(matrix)
        elements += count
    if bucket:
        yield bucket


def _orthogonalized_by_ranks(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return the directions of updates that are the same on all ranks, each from one rank."""
    is_alone = not dist.is_initialized()
    ranks, own_rank = (1, 0) if is_alone else (dist.get_world_size(), dist.get_rank())
    owners = share([tuple(matrix.shape) for matrix in matrices], ranks)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, (matrix, owner) in enumerate(zip(matrices, owners, strict=True)):
        if owner == own_rank:
            by_shape.setdefault(tuple(sorted(matrix.shape)), []).append(index)
    done: dict[int, Tensor] = {}
    for shape, indices in by_shape.items():
        stacked = torch.stack([_wide(matrices[index]) for index in indices])
        directions = orthogonalized(stacked) * (_UPDATE_RMS * max(shape) ** 0.5)
        for index, direction in zip(indices, directions, strict=True):
            done[index] = direction if matrices[index].shape == shape else direction.T
    if ranks == 1:
        return [done[index] for index in range(len(matrices))]
    return _exchanged(done, matrices, owners, ranks)


def _wide(matrix: Tensor) -> Tensor:
    """Return a matrix, transposed if it has more rows than columns."""
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def _exchanged(
    own: dict[int, Tensor], matrices: Sequence[Tensor], owners: Sequence[int], ranks: int
) -> list[Tensor]:
    """Gather the results of all ranks, of which this one has `own`, by index."""
    counts = [0] * ranks
    starts = []
    for matrix, owner in zip(matrices, owners, strict=True):
        starts.append(counts[owner])
        counts[owner] += matrix.numel()
    # Collectives need the same number of elements from each rank.
    sent = matrices[0].new_zeros(max(counts))
    for index, matrix in own.items():
        sent[starts[index] :][: matrix.numel()] = matrix.flatten()
    gathered = sent.new_empty((ranks, len(sent)))
    dist.all_gather(list(gathered.unbind()), sent)
    return [
        gathered[owner, start:][: matrix.numel()].view_as(matrix)
        for matrix, owner, start in zip(matrices, owners, starts, strict=True)
    ]


def share(shapes: Sequence[tuple[int, ...]], ranks: int) -> list[int]:
    """Return the rank that orthogonalizes each matrix, with about the same work for all ranks."""
    work = [max(shape) * min(shape) ** 2 for shape in shapes]
    loads, owners = [0] * ranks, [0] * len(shapes)
    for index in sorted(range(len(shapes)), key=lambda index: -work[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += work[index]
    return owners


def orthogonalized(matrices: Tensor) -> Tensor:
    """Approximate the nearest matrices with orthogonal rows or columns: (n, R, C) -> (n, R, C).

    All singular values of the result are near 1, by a Newton-Schulz iteration.
    """
    # The iteration multiplies by the smaller of the two Gram matrices.
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if is_tall else matrices
    # bfloat16 is exact enough and faster on a GPU, but slower on most CPUs.
    x = x.bfloat16() if x.is_cuda else x.float()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.transpose(1, 2)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.transpose(1, 2) if is_tall else x).to(matrices.dtype)
