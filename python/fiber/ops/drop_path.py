"""Stochastic depth (DropPath): drop the update of a residual block for some of the samples."""

from __future__ import annotations

from torch import Tensor

from fiber.ops.dropout import is_by_row, keeps


def drop_path(update: Tensor, p: float, *, training: bool = True) -> Tensor:
    """Zero the update of a sample with probability `p`, and divide the others by 1 - p.

    Args:
        update: (B, H, W, C), what a block adds to its input.
        p: probability of dropping the update of a sample.
        training: if False, return `update`.

    Source: stochastic depth (Huang et al. 2016), as in Swin.
    """
    if not training or p == 0.0:
        return update
    keep = 1.0 - p
    if is_by_row():
        kept = keeps((update.shape[0], 1, 1, 1), p, update.device).to(update.dtype)
    else:
        kept = update.new_empty(update.shape[0], 1, 1, 1).bernoulli_(keep)
    return update * (kept / keep)
