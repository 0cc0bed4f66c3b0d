"""Loss of masked language modeling (MLM)."""

from __future__ import annotations

from torch import Tensor

from fiber.losses.cross_entropy import check_integers, mean_cross_entropy


def mlm_loss(logits: Tensor, labels: Tensor, *, whole: Tensor | None = None) -> Tensor:
    """Compute the mean cross entropy over the masked tokens of all ranks, or 0 if there are none.

    Args:
        logits: (B, L, V), or (M, V) at M masked positions only.
        labels: (B, L) or (M,) int64: the original id of each masked token, else -100.
        whole: number of masked tokens of all ranks, if known.

    Source: RoBERTa (Liu et al. 2019), as in FIBER.
    """
    if logits.ndim < 2 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"MLM logits have shape {tuple(logits.shape)}, labels {tuple(labels.shape)};"
            " expected (B, L, V) and (B, L), or (M, V) and (M,)"
        )
    check_integers("MLM labels", labels)
    return mean_cross_entropy(logits.flatten(0, -2), labels.flatten(), whole=whole)
