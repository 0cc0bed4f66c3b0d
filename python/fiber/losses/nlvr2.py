"""Loss of NLVR2: is a statement about two images true?"""

from __future__ import annotations

from torch import Tensor

from fiber.losses.cross_entropy import check_integers, mean_cross_entropy


def nlvr2_loss(logits: Tensor, truths: Tensor, *, whole: Tensor | None = None) -> Tensor:
    """Compute the mean cross entropy over the statements of all ranks.

    Args:
        logits: (B, 2); column 1 is "true".
        truths: (B,) int64, 1 for true statements, else 0.
        whole: number of statements of all ranks, if known.
    """
    if logits.ndim != 2 or logits.shape[1] != 2 or tuple(truths.shape) != (logits.shape[0],):
        raise ValueError(
            f"NLVR2 logits have shape {tuple(logits.shape)}, truths {tuple(truths.shape)};"
            " expected (B, 2) and (B,)"
        )
    check_integers("truths", truths)
    return mean_cross_entropy(logits, truths, whole=whole)
