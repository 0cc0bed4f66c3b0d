"""Loss of fine-tuning for retrieval by scores of pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from fiber.losses.cross_entropy import mean_cross_entropy


def ranking_loss(scores: Tensor, *, whole: Tensor | None = None) -> Tensor:
    """Compute the mean cross entropy of each image's own text among the texts scored with it.

    Args:
        scores: (B, 1 + K); column 0 is the image's own text, the others are K false texts.
        whole: number of images of all ranks, if known.

    Source: METER (Dou et al. 2022), fine-tuning for retrieval.
    """
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"ranking scores have shape {tuple(scores.shape)}; expected (B, 1 + K)")
    labels = scores.new_zeros(len(scores), dtype=torch.int64)
    return mean_cross_entropy(scores, labels, whole=whole)
