"""Loss of visual entailment (SNLI-VE)."""

from __future__ import annotations

from torch import Tensor

from fiber.losses.cross_entropy import class_loss


def entailment_loss(logits: Tensor, labels: Tensor, *, whole: Tensor | None = None) -> Tensor:
    """Compute the mean cross entropy over the image-text pairs of all ranks (SNLI-VE).

    Args:
        logits: (B, 3), in the order contradiction, neutral, entailment.
        labels: (B,) int64.
        whole: number of pairs of all ranks, if known.
    """
    return class_loss(logits, labels, 3, "entailment labels", whole=whole)
