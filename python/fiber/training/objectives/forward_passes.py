"""Compute the losses of a micro-batch in several forward passes, to fit more samples into memory.

The losses are those of a single pass: means and contrast are over the whole micro-batch of all
ranks, and so are hard negatives. Losses of separate samples are computed part by part, each with
its backward pass. What depends on all samples, such as vectors for ITC, is computed part by part
without keeping activations, which the backward pass computes again (as in GradCache, Gao et al.
2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fiber.data.batch import BatchT
from fiber.losses.distributed import all_rank_sum
from fiber.ops.dropout import checkpointed


@dataclass(frozen=True)
class ForwardPasses:
    """Split of this rank's samples of a micro-batch into parts.

    All ranks have the same number of parts. Sizes of parts differ by at most 1.
    """

    count: int = 1

    @classmethod
    def of(cls, samples: int, limit: int) -> ForwardPasses:
        """Split at most `samples` into as few parts as have at most `limit`; 0 means no limit."""
        return cls(max(1, -(-samples // limit)) if limit else 1)

    def slices(self, rows: int) -> Iterator[slice]:
        """Yield the range of each part among this rank's rows."""
        for part in range(self.count):
            yield slice(part * rows // self.count, (part + 1) * rows // self.count)

    def parts(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield the rows of each part, of tensors with equal first dimensions."""
        if self.count == 1:
            yield tensors
            return
        for rows in self.slices(len(tensors[0])):
            yield tuple(tensor[rows] for tensor in tensors)

    def batches(self, batch: BatchT) -> Iterator[BatchT]:
        """Yield a batch for each part."""
        if self.count == 1:
            yield batch
            return
        for rows in self.slices(len(batch)):
            yield batch.rows(rows)

    def whole(self, own: Tensor) -> Tensor | None:
        """Sum a count over all ranks, for losses of parts; None if there is a single part."""
        return None if self.count == 1 else all_rank_sum(own)

    def whole_rows(self, rows: Tensor) -> Tensor | None:
        """Count the rows of all ranks; None as for `whole`."""
        return self.whole(torch.tensor(len(rows), device=rows.device))

    def recomputed(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Concatenate `function` of each part; with several parts, keep no activations."""
        if self.count == 1:
            return function(*tensors)
        parts = self.parts(*tensors)
        return torch.cat([checkpointed(function, *part) for part in parts])


#: All samples in one pass.
ONE_PASS = ForwardPasses()
