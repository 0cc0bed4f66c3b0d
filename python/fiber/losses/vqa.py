"""Loss of visual question answering (VQA)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.losses.distributed import rank_mean, wide


def vqa_loss(logits: Tensor, targets: Tensor, *, whole: Tensor | None = None) -> Tensor:
    """Compute the binary cross entropy, summed over answers and averaged over all ranks' questions.

    Both arguments are (B, A); targets are soft scores in [0, 1].

    Source: FIBER's published code (the mean over all entries, multiplied by the number of answers).
    """
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise ValueError(
            f"VQA logits have shape {tuple(logits.shape)}, targets {tuple(targets.shape)};"
            " expected both to have shape (B, answers)"
        )
    logits = wide(logits)
    total = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum")
    return rank_mean(total, torch.tensor(logits.shape[0], device=logits.device), whole)
