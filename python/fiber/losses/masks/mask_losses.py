"""Losses of masks at points, and of the classes of queries.

Source: Mask2Former (Cheng et al. 2022); dice: V-Net (Milletari et al. 2016).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.losses.distributed import all_rank_sum, wide, world_size

#: Added to both sides of the fraction of the dice loss.
DICE_SMOOTHING = 1.0
#: Weight of the background, which most queries have, beside 1 of every class.
BACKGROUND_WEIGHT = 0.1


def mask_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the binary cross entropy of each mask, a mean over its points: (N, P) -> (N,)."""
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.mean(1)


def mask_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the dice loss of each mask, over its points: (N, P) -> (N,)."""
    probabilities = logits.sigmoid()
    both = 2 * (probabilities * targets).sum(1)
    either = probabilities.sum(1) + targets.sum(1)
    return 1 - (both + DICE_SMOOTHING) / (either + DICE_SMOOTHING)


def query_class_loss(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross entropy of the classes of queries.

    Args:
        class_logits: (B, Q, K + 1), the background last.
        labels: (B, Q) int64; K for queries without a mask.

    Returns:
        Scalar, the mean weighted by `BACKGROUND_WEIGHT` for the background and 1 for classes; over
        the queries of all ranks.
    """
    logits, background = wide(class_logits).flatten(0, 1), class_logits.shape[-1] - 1
    weights = logits.new_ones(background + 1)
    weights[background] = BACKGROUND_WEIGHT
    total = F.cross_entropy(logits, labels.flatten(), weights, reduction="sum")
    whole = all_rank_sum(weights[labels].sum())
    return total * world_size() / whole.clamp(min=torch.finfo(logits.dtype).tiny)
