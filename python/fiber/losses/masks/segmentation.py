"""Losses of networks that predict masks by queries, for one or more layers of their decoder.

Shapes: B images, Q queries, R rows that phrases are matched with, K classes, D channels, M masks
and P phrases of the batch.

Source: Mask2Former (Cheng et al. 2022); regions and phrases: Zou et al. (CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fiber.losses.distributed import (
    all_rank_sum,
    gather_rows,
    rank,
    rank_mean,
    row_counts,
    wide,
    world_size,
)
from fiber.losses.masks.mask_losses import mask_bce, mask_dice, query_class_loss
from fiber.losses.masks.mask_matching import (
    PUBLISHED_WEIGHTS,
    Matches,
    MatchingWeights,
    class_costs,
    linear_sum_assignment,
    match_masks,
    phrase_costs,
)
from fiber.losses.masks.point_sampling import RandomPoints, sample_points, uncertain_points
from fiber.losses.masks.region_text import have_all, phrase_alignment_loss, region_text_loss, unit
from fiber.models.features import MaskPrediction

#: Points at which a mask is compared, in published training.
NUM_POINTS = 12544
#: Weights of the alignment of an image's phrases, as published: of expressions that people wrote,
#: and of class names in their place.
EXPRESSION_WEIGHT, CLASS_NAME_WEIGHT = 2.0, 0.5
#: Weight of the cost of a text that a query is matched with.
TEXT_COST = 2.0


class MaskTargets(Protocol):
    """Masks of a batch and their classes, such as a `SegmentationBatch` of the loader."""

    @property
    def masks_per_image(self) -> Tensor:
        """(B,) int64: number of masks of each image."""
        ...

    @property
    def mask_labels(self) -> Tensor:
        """(M,) int64 classes, ordered by image."""
        ...

    @property
    def phrases_per_image(self) -> Tensor:
        """(B,) int64: number of phrases of each image."""
        ...

    def masks_of(self, image: int) -> Tensor:
        """Return the masks of an image: (m, H, W) bool."""
        ...

    def phrase_masks_of(self, image: int) -> Tensor:
        """Return the masks of the phrases of an image: (p, H, W) bool."""
        ...


class RegionTexts(NamedTuple):
    """Texts of an image that regions without a mask are matched with."""

    #: (n, D) vectors, and int64 numbers that are equal for equal texts of all ranks.
    vectors: Tensor
    ids: Tensor


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Options of `segmentation_losses`; defaults are published."""

    #: Points of a mask in matching and in losses.
    num_points: int = NUM_POINTS
    #: Weights of the costs of matching.
    matching: MatchingWeights = PUBLISHED_WEIGHTS
    #: Number of last layers with each loss; masks and classes have all.
    region_layers: int = 3
    phrase_layers: int = 6


PUBLISHED = LossOptions()


def _matched_masks(
    mask_logits: Tensor,
    masks: Sequence[Tensor],
    matches: Sequence[Matches],
    num_points: int,
    random_points: RandomPoints,
) -> tuple[Tensor, Tensor]:
    """Sample matched masks at uncertain points.

    Args:
        mask_logits: (B, Q, h, w).
        masks: (m, H, W) bool of each image.
        matches: of each image.
        num_points: number of points N.
        random_points: draws the points.

    Returns:
        (M, N) logits, which have a gradient, and (M, N) targets in [0, 1]; M masks are matched.
    """
    counts = [len(each.queries) for each in matches]
    own = wide(
        torch.cat([logits[each.queries] for logits, each in zip(mask_logits, matches, strict=True)])
    )
    points = uncertain_points(own.detach(), counts, num_points, random_points).to(own.dtype)
    targets, at = [], 0
    for each, found, count in zip(masks, matches, counts, strict=True):
        # Of one image at a time, since masks as numbers have 32 times the size of bits.
        if count:
            chosen = each[found.targets].to(own.dtype)
            targets.append(sample_points(chosen, points[at : at + count]))
        at += count
    if not targets:
        return own.flatten(1), own.flatten(1).detach()
    return sample_points(own, points), torch.cat(targets)


def mask_losses(
    prediction: MaskPrediction,
    targets: MaskTargets,
    masks: Sequence[Tensor],
    random_points: RandomPoints,
    options: LossOptions = PUBLISHED,
) -> tuple[dict[str, Tensor], list[Matches]]:
    """Match the masks of each image with queries, and compute the losses of masks and classes.

    Args:
        prediction: of one layer.
        targets: masks and classes of the images.
        masks: `targets.masks_of` each image.
        random_points: draws points.
        options: points and weights of costs.

    Returns:
        `mask_class`, `mask_bce` and `mask_dice`, unweighted, and the matching of each image. Sums
        over masks are divided by the number of masks of all ranks, at least one a rank.
    """
    with torch.autocast(prediction.mask_logits.device.type, enabled=False):
        class_logits = wide(prediction.class_logits)
        matches = []
        for image, labels in enumerate(_split(targets.mask_labels, targets.masks_per_image)):
            points = random_points([int(n == image) for n in range(len(masks))], options.num_points)
            costs = class_costs(class_logits[image], labels)
            matches.append(
                match_masks(
                    costs, prediction.mask_logits[image], masks[image], points, options.matching
                )
            )
        background = class_logits.shape[-1] - 1
        labels = torch.full_like(class_logits[..., 0], background, dtype=torch.int64)
        for row, own, each in zip(
            labels, _split(targets.mask_labels, targets.masks_per_image), matches, strict=True
        ):
            row[each.queries] = own[each.targets]
        logits, wanted = _matched_masks(
            prediction.mask_logits, masks, matches, options.num_points, random_points
        )
        count = torch.tensor(float(len(targets.mask_labels)), device=logits.device)
        whole = (all_rank_sum(count) / world_size()).clamp(min=1)
        losses = {
            "mask_class": query_class_loss(class_logits, labels),
            "mask_bce": mask_bce(logits, wanted).sum() / whole,
            "mask_dice": mask_dice(logits, wanted).sum() / whole,
        }
    return losses, matches


def region_losses(
    prediction: MaskPrediction,
    targets: MaskTargets,
    matches: Sequence[Matches],
    texts: Sequence[RegionTexts],
    class_vectors: Tensor,
    class_ids: Tensor,
    scale: Tensor,
) -> tuple[Tensor, list[Matches]]:
    """Contrast queries with texts: those with a mask with its class, others with the image's texts.

    Args:
        prediction: of one layer.
        targets: masks and classes of the images.
        matches: of `mask_losses`.
        texts: texts of each image, such as nouns of its caption that are no classes, and the
            caption itself.
        class_vectors: (K + 1, D) unit vectors of the classes and, last, of the background.
        class_ids: (K + 1,) int64 numbers of the classes' texts, in the space of `RegionTexts.ids`.
        scale: factor of the cosines.

    Returns:
        The loss, and the pairs of the queries without a mask, as numbered among themselves, with
        the texts of each image.
    """
    own_candidates = unit(torch.cat([each.vectors for each in texts]).detach())
    counts = row_counts(own_candidates)
    # As in one process, a text of any rank takes part in the softmax.
    candidates = gather_rows(own_candidates, counts)
    starts = [sum(counts[: rank()])]
    for each in texts:
        starts.append(starts[-1] + len(each.vectors))
    regions, vectors, ids, pairs = [], [], [], []
    with_mask, own_labels = [], []
    labels = _split(targets.mask_labels, targets.masks_per_image)
    for image, (own, each) in enumerate(zip(labels, matches, strict=True)):
        free = torch.ones(prediction.vectors.shape[1], dtype=torch.bool, device=own.device)
        free[each.queries] = False
        # As published, queries without a mask get no gradient: only the texts do.
        found = prediction.vectors[image][free].detach()
        with torch.no_grad():
            similarity = scale * unit(found) @ candidates.T
            # The softmax is over the texts of all images, as published.
            probabilities = similarity.softmax(-1)[:, starts[image] : starts[image + 1]]
            pair = linear_sum_assignment(-TEXT_COST * probabilities)
        pairs.append(pair)
        regions.append(found[pair.queries])
        vectors.append(texts[image].vectors[pair.targets])
        ids.append(texts[image].ids[pair.targets])
        with_mask.append(prediction.vectors[image][each.queries])
        own_labels.append(own[each.targets])
    chosen = torch.cat(own_labels)
    loss = region_text_loss(
        torch.cat((*regions, *with_mask)),
        torch.cat((*vectors, class_vectors[chosen])),
        torch.cat((*ids, class_ids[chosen])),
        scale,
    )
    return loss, pairs


def phrase_losses(
    prediction: MaskPrediction,
    targets: MaskTargets,
    masks: Sequence[Tensor],
    phrase_vectors: Tensor,
    phrase_ids: Tensor,
    scale: Tensor,
    random_points: RandomPoints,
    options: LossOptions = PUBLISHED,
    weights: Sequence[float] | None = None,
) -> tuple[dict[str, Tensor], list[Matches]]:
    """Match phrases with the rows that read them, and compute the losses of their masks.

    If an image of any rank has no phrases, all losses are 0, as published.

    Args:
        prediction: of one layer, with rows for phrases.
        targets: phrases of the images.
        masks: `targets.phrase_masks_of` each image.
        phrase_vectors: (P, D) text vectors of the phrases.
        phrase_ids: (P,) int64, equal for equal phrases of an image.
        scale: factor of the cosines.
        random_points: draws points.
        options: points and weights of costs.
        weights: weight of the alignment of each image; default: `EXPRESSION_WEIGHT`.

    Returns:
        `phrase_bce`, `phrase_dice` and `phrase_alignment`, unweighted, and the matching of each
        image.
    """
    logits, vectors = prediction.phrase_mask_logits, prediction.phrase_vectors
    if logits is None or vectors is None:
        raise ValueError("the prediction has no rows for phrases; expected phrase_mask_logits")
    if not have_all(targets.phrases_per_image):
        nothing = 0.0 * (logits.sum() + vectors.sum() + phrase_vectors.sum())
        return dict.fromkeys(("phrase_bce", "phrase_dice", "phrase_alignment"), nothing), []
    with torch.autocast(logits.device.type, enabled=False):
        similarities, matches = [], []
        for image, own in enumerate(_split(phrase_vectors, targets.phrases_per_image)):
            similarity = scale * unit(vectors[image]) @ unit(own).T
            points = random_points([int(n == image) for n in range(len(masks))], options.num_points)
            costs = phrase_costs(similarity.detach())
            similarities.append(similarity)
            matches.append(
                match_masks(costs, logits[image], masks[image], points, options.matching)
            )
        sampled, wanted = _matched_masks(logits, masks, matches, options.num_points, random_points)
        count = torch.tensor(len(sampled), device=sampled.device)
        alignment = phrase_alignment_loss(
            similarities,
            [each.queries for each in matches],
            [each.targets for each in matches],
            _split(phrase_ids, targets.phrases_per_image),
            [EXPRESSION_WEIGHT] * len(matches) if weights is None else weights,
        )
        losses = {
            "phrase_bce": rank_mean(mask_bce(sampled, wanted).sum(), count),
            "phrase_dice": rank_mean(mask_dice(sampled, wanted).sum(), count),
            "phrase_alignment": alignment,
        }
    return losses, matches


def _split(rows: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
    """Split rows that are ordered by image."""
    return rows.split(counts.tolist())
