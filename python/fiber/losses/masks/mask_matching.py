"""Matching of predicted masks, or vectors, with targets: each target gets a prediction of its own.

Shapes: Q queries, M masks of an image, P points, K classes.

Source: the matching of Mask2Former (Cheng et al. 2022), as Zou et al. (CVPR 2023) have it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fiber import _core
from fiber.losses.distributed import wide
from fiber.losses.masks.mask_losses import DICE_SMOOTHING
from fiber.losses.masks.point_sampling import sample_points


class Matches(NamedTuple):
    """Pairs of one image, ordered by query."""

    #: (n,) int64 indices of queries and of their targets.
    queries: Tensor
    targets: Tensor


class MatchingWeights(NamedTuple):
    """Weights of the costs of a pair."""

    label: float = 2.0
    bce: float = 5.0
    dice: float = 5.0


PUBLISHED_WEIGHTS = MatchingWeights()


def linear_sum_assignment(costs: Tensor) -> Matches:
    """Choose pairs of the least total cost, as many as the fewer of rows and columns: (Q, M).

    Raises:
        ValueError: if a cost is NaN or negative infinity: the network has diverged.
    """
    values = np.ascontiguousarray(costs.detach().cpu().numpy(), dtype=np.float64)
    found = np.asarray(_core.linear_sum_assignment(values))
    queries, targets = torch.from_numpy(found.copy()).to(costs.device)
    return Matches(queries, targets)


def bce_costs(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute binary cross entropies of all pairs: (Q, P) logits, (M, P) in [0, 1] -> (Q, M).

    Each is the mean over the points.
    """
    positive, negative = F.softplus(-logits), F.softplus(logits)
    return (positive @ targets.T + negative @ (1 - targets).T) / logits.shape[1]


def dice_costs(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the dice losses of all pairs: (Q, P) logits, (M, P) in [0, 1] -> (Q, M)."""
    probabilities = logits.sigmoid()
    both = 2 * (probabilities @ targets.T)
    either = probabilities.sum(1)[:, None] + targets.sum(1)
    return 1 - (both + DICE_SMOOTHING) / (either + DICE_SMOOTHING)


@torch.no_grad()
def match_masks(
    label_costs: Tensor,
    mask_logits: Tensor,
    masks: Tensor,
    points: Tensor,
    weights: MatchingWeights = PUBLISHED_WEIGHTS,
) -> Matches:
    """Match the masks of an image with queries.

    Args:
        label_costs: (Q, M) costs of giving a query the label of a mask, such as the negative
            probability.
        mask_logits: (Q, h, w).
        masks: (M, H, W) bool or numbers in [0, 1].
        points: (1, P, 2) points at which all masks are compared; see `point_sampling`.
        weights: of the costs.
    """
    # Sums over points lose too much in half precision.
    with torch.autocast(mask_logits.device.type, enabled=False):
        logits = sample_points(wide(mask_logits), points.to(wide(mask_logits).dtype))
        targets = sample_points(masks.to(logits.dtype), points.to(logits.dtype))
        costs = (
            weights.bce * bce_costs(logits, targets)
            + weights.label * wide(label_costs)
            + weights.dice * dice_costs(logits, targets)
        )
    return linear_sum_assignment(costs)


def class_costs(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Return the negative probabilities of labels: (Q, K + 1) logits, (M,) int64 -> (Q, M)."""
    return -wide(class_logits).softmax(-1)[:, labels]


def phrase_costs(similarity: Tensor) -> Tensor:
    """Return the negative probability of each query for a phrase: (Q, M) logits -> (Q, M).

    The softmax is over queries, other than for classes.
    """
    return -wide(similarity).softmax(0)
