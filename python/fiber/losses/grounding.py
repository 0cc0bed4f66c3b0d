"""Losses of the fine stage: token alignment, boxes and centerness.

Shapes: B images, A anchors over all levels, L tokens, G boxes, P anchors assigned to a box.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.config import FiberConfig
from fiber.losses.atss import atss_assign
from fiber.losses.distributed import all_rank_sum, wide, world_size
from fiber.losses.masks.box_masks import Assigned, BoxMasks, box_mask_losses
from fiber.models.features import DetectorOutput
from fiber.ops.boxes import centers, decode_deltas, paired_giou, to_inclusive

#: Weight of positive tokens and focusing exponent, as in the published code.
FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


class GroundingTargets(Protocol):
    """Boxes of a batch and the tokens that name them, such as `fiber.data.GroundingBatch`."""

    @property
    def boxes_xyxy(self) -> Tensor:
        """(G, 4) half-open pixel coordinates in the transformed image, ordered by image."""
        ...

    @property
    def boxes_per_image(self) -> Tensor:
        """(B,) int64: number of boxes of each image."""
        ...

    @property
    def positive_map(self) -> Tensor:
        """(G, L) bool, True = the token names the box."""
        ...


def grounding_losses(
    output: DetectorOutput,
    batch: GroundingTargets,
    config: FiberConfig,
    *,
    background_token: int | None = None,
    whole: Tensor | None = None,
    box_masks: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute the losses of a batch, assigning anchors to boxes by ATSS.

    Args:
        output: predictions for the batch.
        batch: boxes and the tokens that name them; an image may have no boxes.
        config: config of the model.
        background_token: target token of unassigned anchors; by default, they have no target.
            Published training uses the last of 256 tokens. This token is usually <pad>, but if the
            text fills all 256 tokens, it is </s>, a wrong target for unassigned anchors.
        whole: sum of `num_assigned` over all ranks, if known. For a part of the rank's images, pass
            it, so that the losses of all parts add up.
        box_masks: (G, H, ceil(W / 8)) uint8 packed masks of the boxes, for losses of masks; see
            `fiber.losses.masks.box_masks`. The model must predict masks.

    Returns:
        Unweighted float32 scalars: `alignment` (token focal loss divided by the number of assigned
        anchors), `box` (centerness-weighted mean of 1 - GIoU) and `centerness` (mean binary cross
        entropy over assigned anchors). Divisors are summed over all ranks. The published weights
        are 2 for `box` and 1 for the others. With `box_masks`, also `mask_bce` and `mask_dice`,
        divided by the number of assigned anchors.
    """
    assigned = _assign(output.anchors, output.inside, batch, config)
    image, anchor = (assigned >= 0).nonzero(as_tuple=True)
    box = assigned[image, anchor]

    token_logits = wide(torch.cat(output.token_logits, dim=1))
    targets = torch.zeros_like(token_logits, dtype=torch.bool)
    if background_token is not None:
        free = assigned < 0
        targets[..., background_token] = free if output.inside is None else free & output.inside
    targets[image, anchor] = batch.positive_map[box]

    anchors = torch.cat(output.anchors)[anchor]
    boxes = batch.boxes_xyxy.float()[box]
    predicted = decode_deltas(wide(torch.cat(output.box_deltas, dim=1)[image, anchor]), anchors)
    centrality = centerness_targets(anchors, boxes)
    centerness_logits = wide(torch.cat(output.centerness_logits, dim=1)[image, anchor])

    alignment = (token_focal_loss(token_logits, targets) * output.text_mask[:, None]).sum()
    # The published code uses inclusive corners but omits the + 1; see `fiber.ops.boxes`.
    giou = paired_giou(to_inclusive(predicted), to_inclusive(boxes))
    centerness = F.binary_cross_entropy_with_logits(centerness_logits, centrality, reduction="sum")

    if whole is None:
        count = centrality.new_tensor(float(len(box)))
        whole = all_rank_sum(torch.stack([count, centrality.sum()]))
    # Avoid division by 0 if no rank has a box.
    per_anchor = world_size() / whole[0].clamp(min=1.0)
    per_centrality = world_size() / whole[1].clamp(min=1e-6)
    losses = {
        "alignment": alignment * per_anchor,
        "box": (centrality * (1 - giou)).sum() * per_centrality,
        "centerness": centerness * per_anchor,
    }
    if box_masks is not None and output.masks is not None:
        masks = box_mask_losses(
            output.masks,
            torch.cat(output.anchors),
            BoxMasks(batch.boxes_xyxy, batch.boxes_per_image, box_masks),
            Assigned(image, anchor, box),
        )
        losses |= {name: loss * per_anchor for name, loss in masks.items()}
    return losses


def num_assigned(
    anchors: list[Tensor], inside: Tensor | None, batch: GroundingTargets, config: FiberConfig
) -> Tensor:
    """Count the anchors that are assigned to a box, and sum their centerness targets.

    Anchors and the valid ones are those of the batch's `DetectorOutput`.

    Returns:
        (2,) float32.
    """
    assigned = _assign(anchors, inside, batch, config)
    image, anchor = (assigned >= 0).nonzero(as_tuple=True)
    boxes = batch.boxes_xyxy.float()[assigned[image, anchor]]
    centrality = centerness_targets(torch.cat(anchors)[anchor], boxes)
    return torch.stack([centrality.new_tensor(float(len(boxes))), centrality.sum()])


def _assign(
    anchors: list[Tensor], inside: Tensor | None, batch: GroundingTargets, config: FiberConfig
) -> Tensor:
    return atss_assign(
        anchors,
        batch.boxes_xyxy.float(),
        batch.boxes_per_image,
        top_k=config.detector.atss_top_k,
        inside=inside,
    )


def token_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the elementwise binary focal loss alpha_t * (1 - p_t)^2 * -log(p_t).

    Alpha is 0.25 for True and 0.75 for False targets.

    Source: Lin et al. 2017, "Focal loss".
    """
    # p_t = sigmoid(signed), so -log(p_t) is a softplus and always finite.
    signed = torch.where(targets, logits, -logits)
    loss = torch.sigmoid(-signed) ** FOCAL_GAMMA * F.softplus(-signed)
    return loss * torch.where(targets, FOCAL_ALPHA, 1 - FOCAL_ALPHA)


def centerness_targets(anchors_xyxy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Compute the centerness of (P, 4) anchors in the (P, 4) boxes that contain their centers.

    Anchors and boxes are in half-open coordinates.

    Returns:
        (P,) in (0, 1]. For x and y, the distance from the anchor's center to the nearer side is
        divided by the distance to the farther side; centerness is the square root of the product of
        both ratios. Corners are inclusive, as in the published code.

    Source: FCOS (Tian et al. 2019).
    """
    middles, corners = centers(to_inclusive(anchors_xyxy)), to_inclusive(boxes_xyxy)
    low, high = middles - corners[:, :2], corners[:, 2:] - middles
    ratios = torch.minimum(low, high) / torch.maximum(low, high)
    return ratios.prod(dim=1).clamp(min=0).sqrt()
