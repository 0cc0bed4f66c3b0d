"""Loss of visual entailment (SNLI-VE)."""

from __future__ import annotations

from torch import Tensor

from fiber.losses.cross_entropy import check_integers, mean_cross_entropy


def entailment_loss(logits: Tensor, labels: Tensor, *, whole: Tensor | None = None) -> Tensor:
    """Compute the mean cross entropy over the image-text pairs of all ranks (SNLI-VE).

    Args:
        logits: (B, 3), in the order contradiction, neutral, entailment.
        labels: (B,) int64.
        whole: number of pairs of all ranks, if known.
    """
    if logits.ndim != 2 or logits.shape[1] != 3 or tuple(labels.shape) != (logits.shape[0],):
        raise ValueError(
            f"entailment logits have shape {tuple(logits.shape)}, labels {tuple(labels.shape)};"
            " expected (B, 3) and (B,)"
        )
    check_integers("entailment labels", labels)
    return mean_cross_entropy(logits, labels, whole=whole)
