"""Cross entropy as a mean over the global batch, for losses with one label per row.

Losses are means over all ranks: a rank returns its own sum times the world size, divided by the
count over all ranks, so the mean over ranks equals the loss of one process on the global batch.
Logits are cast to float32. `whole` is the count over all ranks, if known; pass it for a part of the
rank's samples, so that the losses of all parts add up. All functions raise ValueError if shapes or
dtypes do not match.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.losses.distributed import rank_mean, wide

#: Label of a token or pair without a target.
IGNORED = -100


def mean_cross_entropy(logits: Tensor, labels: Tensor, *, whole: Tensor | None = None) -> Tensor:
    """Average the cross entropy of (N, V) logits over the labels of all ranks, except IGNORED."""
    total = F.cross_entropy(wide(logits), labels, ignore_index=IGNORED, reduction="sum")
    return rank_mean(total, num_labels(labels), whole)


def class_loss(
    logits: Tensor, labels: Tensor, num_classes: int, name: str, *, whole: Tensor | None = None
) -> Tensor:
    """Compute the mean cross entropy over the samples of all ranks, which have a class each.

    Args:
        logits: (B, num_classes).
        labels: (B,) int64; `name` says what they are in messages.
        num_classes: expected number of classes.
        name: see `labels`.
        whole: number of samples of all ranks, if known.
    """
    if logits.ndim != 2 or logits.shape[1] != num_classes or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, {name} {tuple(labels.shape)}; expected"
            f" (B, {num_classes}) and (B,)"
        )
    check_integers(name, labels)
    return mean_cross_entropy(logits, labels, whole=whole)


def num_labels(labels: Tensor) -> Tensor:
    """Count the labels that are not IGNORED, as an int64 scalar."""
    return (labels != IGNORED).sum()


def check_integers(name: str, values: Tensor) -> None:
    """Raise ValueError unless the values are int64; `name` is their name in the message."""
    if values.dtype != torch.int64:
        raise ValueError(f"{name} have dtype {values.dtype}; expected torch.int64")
