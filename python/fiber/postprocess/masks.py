"""From mask logits and class logits to semantic maps, panoptic segments and instances.

Shapes:
    mask_logits: (Q, H, W) at the wanted size; see `final_masks`.
    class_logits: (Q, K + 1), the background last.

Source: Mask2Former (Cheng et al. 2022), as in Zou et al. (CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fiber.ops.masks import mask_boxes, resize_masks

#: Added to the number of pixels of a mask before dividing by it, as published.
_AREA_EPS = 1e-6
#: Number of masks that are resized to the size of the output at once.
MASKS_AT_ONCE = 8
#: Probability from which on a pixel belongs to a mask.
_FOREGROUND = 0.5


class Segment(NamedTuple):
    """Segment of a panoptic map."""

    #: Value of its pixels in the map, from 1.
    id: int
    #: Index of its class.
    label: int
    is_thing: bool
    #: Probability of its class; of merged stuff, that of the first part.
    score: float


class Panoptic(NamedTuple):
    """Panoptic segmentation of an image."""

    #: (H, W) int64; 0 is no segment.
    ids: Tensor
    segments: tuple[Segment, ...]


class Instances(NamedTuple):
    """Instances of an image, best first."""

    #: (N,) scores and int64 class indices.
    scores: Tensor
    labels: Tensor
    #: (N, H, W) bool.
    masks: Tensor
    #: (N, 4) half-open xyxy pixels.
    boxes: Tensor


class MaskSizes(NamedTuple):
    """Sizes of an image, as (height, width) in pixels."""

    #: Of the input with its padding, and without it.
    padded: tuple[int, int]
    inside: tuple[int, int]
    #: Of the output.
    wanted: tuple[int, int]


def final_masks(
    mask_logits: Tensor,
    padded: tuple[int, int],
    inside: tuple[int, int],
    wanted: tuple[int, int],
) -> Tensor:
    """Resize mask logits of an image to the wanted size.

    Args:
        mask_logits: (Q, h, w) as the model gives them.
        padded: (height, width) of the input with its padding.
        inside: (height, width) without it.
        wanted: (height, width) of the output.
    """
    masks = resize_masks(mask_logits[None], padded)[..., : inside[0], : inside[1]]
    return resize_masks(masks, wanted)[0]


def semantic_scores(
    mask_logits: Tensor, class_logits: Tensor, *, with_background: bool = False
) -> Tensor:
    """Sum the masks of each class, weighted by its probability: (K, H, W) or (K + 1, H, W).

    The label of a pixel is the class with the largest sum.
    """
    probabilities = class_logits.softmax(-1)
    if not with_background:
        probabilities = probabilities[:, :-1]
    return torch.einsum("qc,qhw->chw", probabilities, mask_logits.sigmoid())


def panoptic_segments(
    mask_logits: Tensor,
    class_logits: Tensor,
    is_thing: Sequence[bool],
    *,
    score_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
) -> Panoptic:
    """Give each pixel to the best mask over it, and keep masks that are left with enough of theirs.

    Parts of the same stuff are one segment. Probabilities are float32: where two masks are 1 there,
    the first has the pixel, as published.

    Args:
        mask_logits: (Q, H, W).
        class_logits: (Q, K + 1).
        is_thing: for each class, True if it has instances, False if it is stuff.
        score_threshold: probability of the class that a mask must exceed.
        overlap_threshold: least share of a mask's own pixels that must be left to it.
    """
    scores, labels = class_logits.softmax(-1).max(-1)
    kept = (labels != len(is_thing)) & (scores > score_threshold)
    scores, labels = scores[kept], labels[kept].tolist()
    masks = mask_logits[kept].float().sigmoid()
    ids = torch.zeros(mask_logits.shape[1:], dtype=torch.int64, device=mask_logits.device)
    segments: list[Segment] = []
    if not labels:
        return Panoptic(ids, ())
    owners = (scores[:, None, None] * masks).argmax(0)
    stuff: dict[int, int] = {}
    for number, label in enumerate(labels):
        owned, own = owners == number, masks[number] >= _FOREGROUND
        pixels = owned & own
        if not pixels.any() or owned.sum() / own.sum() < overlap_threshold:
            continue
        if label in stuff:
            ids[pixels] = stuff[label]
            continue
        new = len(segments) + 1
        if not is_thing[label]:
            stuff[label] = new
        ids[pixels] = new
        segments.append(Segment(new, label, bool(is_thing[label]), float(scores[number])))
    return Panoptic(ids, tuple(segments))


def instance_masks(
    mask_logits: Tensor,
    class_logits: Tensor,
    is_thing: Sequence[bool] | None = None,
    *,
    max_instances: int = 100,
) -> Instances:
    """Pick the best pairs of a mask and a class.

    The score is the probability of the class times the mean probability of the mask's pixels.

    Args:
        mask_logits: (Q, H, W).
        class_logits: (Q, K + 1).
        is_thing: drop pairs with other classes, after the best have been picked, as published;
            None keeps all.
        max_instances: number of pairs to pick.
    """
    probabilities = class_logits.softmax(-1)[:, :-1]
    num_classes = probabilities.shape[1]
    best, index = probabilities.flatten().topk(min(max_instances, probabilities.numel()))
    labels = index % num_classes
    if is_thing is not None:
        things = torch.tensor(list(is_thing), device=labels.device)[labels]
        best, index, labels = best[things], index[things], labels[things]
    logits = mask_logits[index // num_classes]
    masks = logits > 0
    inside = (logits.sigmoid() * masks).flatten(1).sum(1)
    scores = best * inside / (masks.flatten(1).sum(1) + _AREA_EPS)
    order = scores.argsort(descending=True, stable=True)
    masks = masks[order]
    return Instances(scores[order], labels[order], masks, mask_boxes(masks))


def final_semantic(mask_logits: Tensor, class_logits: Tensor, sizes: MaskSizes) -> Tensor:
    """Compute `semantic_scores` at the size of the output, from masks at that of the model.

    Masks are resized and summed some at a time.

    Args:
        mask_logits: (Q, h, w).
        class_logits: (Q, K + 1).
        sizes: sizes of the image.
    """
    scores = mask_logits.new_zeros(class_logits.shape[1] - 1, *sizes.wanted, dtype=torch.float32)
    for start in range(0, len(mask_logits), MASKS_AT_ONCE):
        some = slice(start, start + MASKS_AT_ONCE)
        masks = final_masks(mask_logits[some].float(), *sizes)
        scores += semantic_scores(masks, class_logits[some].float())
    return scores


def final_panoptic(
    mask_logits: Tensor,
    class_logits: Tensor,
    sizes: MaskSizes,
    is_thing: Sequence[bool],
    *,
    score_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
) -> Panoptic:
    """Compute `panoptic_segments` at the size of the output, from masks at that of the model.

    Only masks whose class has the score are resized.

    Args:
        mask_logits: (Q, h, w).
        class_logits: (Q, K + 1).
        sizes: sizes of the image.
        is_thing: for each class, True if it has instances, False if it is stuff.
        score_threshold: see `panoptic_segments`.
        overlap_threshold: see `panoptic_segments`.
    """
    class_logits = class_logits.float()
    scores, labels = class_logits.softmax(-1).max(-1)
    kept = (labels != len(is_thing)) & (scores > score_threshold)
    masks = mask_logits[kept].float()
    # A resize of no masks is an error of torch.
    masks = final_masks(masks, *sizes) if len(masks) else masks.new_zeros(0, *sizes.wanted)
    return panoptic_segments(
        masks,
        class_logits[kept],
        is_thing,
        score_threshold=score_threshold,
        overlap_threshold=overlap_threshold,
    )


def final_instances(
    mask_logits: Tensor,
    class_logits: Tensor,
    sizes: MaskSizes,
    is_thing: Sequence[bool] | None = None,
    *,
    max_instances: int = 100,
) -> Instances:
    """Compute `instance_masks` at the size of the output, from masks at that of the model.

    Only masks of the best pairs are resized.

    Args:
        mask_logits: (Q, h, w).
        class_logits: (Q, K + 1).
        sizes: sizes of the image.
        is_thing: see `instance_masks`.
        max_instances: see `instance_masks`.
    """
    class_logits = class_logits.float()
    probabilities = class_logits.softmax(-1)[:, :-1].flatten()
    _, index = probabilities.topk(min(max_instances, len(probabilities)))
    # In order, so that the same pair is first where two are equal.
    rows = (index // (class_logits.shape[1] - 1)).unique()
    masks = final_masks(mask_logits[rows].float(), *sizes)
    return instance_masks(masks, class_logits[rows], is_thing, max_instances=max_instances)
