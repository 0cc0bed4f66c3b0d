"""Loss of NLVR2: is a statement about two images true?"""

from __future__ import annotations

from torch import Tensor

from fiber.losses.cross_entropy import class_loss


def nlvr2_loss(logits: Tensor, truths: Tensor, *, whole: Tensor | None = None) -> Tensor:
    """Compute the mean cross entropy over the statements of all ranks.

    Args:
        logits: (B, 2); column 1 is "true".
        truths: (B,) int64, 1 for true statements, else 0.
        whole: number of statements of all ranks, if known.
    """
    return class_loss(logits, truths, 2, "truths", whole=whole)
