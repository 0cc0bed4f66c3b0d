"""Points at which mask losses and matching costs are computed, in place of all pixels.

Shapes:
    maps: (N, H, W) mask logits or masks as numbers.
    points: (N, P, 2) in [0, 1], as (x, y); (0, 0) is the outer corner of the first pixel.

Source: PointRend (Kirillov et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Draws uniform points of the masks of some images: (number of masks of each image, P) ->
#: (sum of the numbers, P, 2) in [0, 1).
RandomPoints = Callable[[Sequence[int], int], Tensor]

#: Points that are drawn for each one that is kept, and the share of those that are kept because
#: they are uncertain.
OVERSAMPLING, UNCERTAIN_SHARE = 3, 0.75


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Interpolate maps at points, bilinearly; beyond the border they are 0.

    Args:
        maps: (N, H, W).
        points: (N, P, 2), or (1, P, 2) for all maps.

    Returns:
        (N, P).
    """
    if len(points) == 1:
        # As channels of one image, maps share the weights of their points.
        sampled = F.grid_sample(maps[None], 2 * points[:, None] - 1, align_corners=False)
        return sampled[0, :, 0]
    return F.grid_sample(maps[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


@torch.no_grad()
def uncertain_points(
    mask_logits: Tensor, counts: Sequence[int], num_points: int, random_points: RandomPoints
) -> Tensor:
    """Choose points of masks: most where a mask is least certain, the others at random.

    Args:
        mask_logits: (N, H, W), ordered by image.
        counts: number of masks of each image; the sum is N.
        num_points: points of a mask.
        random_points: draws the points.

    Returns:
        (N, num_points, 2).
    """
    drawn = random_points(counts, OVERSAMPLING * num_points)
    certainty = sample_points(mask_logits, drawn).abs() if len(drawn) else drawn[..., 0]
    num_uncertain = int(UNCERTAIN_SHARE * num_points)
    index = (-certainty).topk(num_uncertain, dim=1).indices
    uncertain = drawn.gather(1, index[..., None].expand(-1, -1, 2))
    others = random_points(counts, num_points - num_uncertain)
    return torch.cat((uncertain, others), 1)


def seeded_points(seed: int, images: Sequence[int], device: torch.device | str) -> RandomPoints:
    """Return `RandomPoints` whose numbers depend on the image alone, not on its batch or rank.

    Args:
        seed: seed of the computation; every call continues each image's numbers.
        images: number of each image, as in the batch of all ranks.
        device: where the points are.
    """
    generators = [torch.Generator().manual_seed(_mixed(seed, number)) for number in images]

    def draw(counts: Sequence[int], num_points: int) -> Tensor:
        drawn = [
            torch.rand(count, num_points, 2, generator=generator)
            for count, generator in zip(counts, generators, strict=True)
        ]
        return torch.cat(drawn).to(device)

    return draw


def _mixed(seed: int, number: int) -> int:
    """Mix two numbers into a seed of 63 bits."""
    value = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 1) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) & (2**63 - 1)
