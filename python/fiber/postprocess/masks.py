"""From mask logits and class logits to semantic maps, panoptic segments and instances.

Logits are tensors of a network, or arrays of numpy of exported graphs (`fiber.ops.arrays`).

Shapes:
    mask_logits: (Q, H, W) at the wanted size; see `final_masks`.
    class_logits: (Q, K + 1), the background last.

Source: Mask2Former (Cheng et al. 2022), as in Zou et al. (CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fiber.ops.arrays import functions_of
from fiber.ops.masks import mask_boxes, resize_masks

if TYPE_CHECKING:
    from torch import Tensor

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
    f = functions_of(mask_logits)
    probabilities = f.softmax(class_logits)
    if not with_background:
        probabilities = probabilities[:, :-1]
    return f.einsum("qc,qhw->chw", probabilities, f.sigmoid(mask_logits))


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
    f = functions_of(mask_logits)
    scores, indices = f.best(f.softmax(class_logits), -1)
    kept = (indices != len(is_thing)) & (scores > score_threshold)
    scores, labels = scores[kept], indices[kept].tolist()
    masks = f.sigmoid(f.float32(mask_logits[kept]))
    ids = f.zeros(mask_logits.shape[1:], indices)
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
    f = functions_of(mask_logits)
    probabilities = f.softmax(class_logits)[:, :-1]
    num_classes = probabilities.shape[1]
    flat = probabilities.flatten()
    best, index = f.topk(flat, min(max_instances, len(flat)))
    labels = index % num_classes
    if is_thing is not None:
        things = f.moved(np.array(is_thing, bool), labels)[labels]
        best, index, labels = best[things], index[things], labels[things]
    logits = mask_logits[index // num_classes]
    masks = logits > 0
    inside = (f.sigmoid(logits) * masks).sum((1, 2))
    scores = best * inside / f.float32(masks.sum((1, 2)) + _AREA_EPS)
    order = f.argsort(scores, descending=True)
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
    f = functions_of(mask_logits)
    class_logits = f.float32(class_logits)
    scores = f.zeros((class_logits.shape[1] - 1, *sizes.wanted), class_logits)
    for start in range(0, len(mask_logits), MASKS_AT_ONCE):
        some = slice(start, start + MASKS_AT_ONCE)
        masks = final_masks(f.float32(mask_logits[some]), *sizes)
        scores += semantic_scores(masks, class_logits[some])
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
    f = functions_of(mask_logits)
    class_logits = f.float32(class_logits)
    scores, labels = f.best(f.softmax(class_logits), -1)
    kept = (labels != len(is_thing)) & (scores > score_threshold)
    masks = f.float32(mask_logits[kept])
    # A resize of no masks is an error of torch.
    masks = final_masks(masks, *sizes) if len(masks) else f.zeros((0, *sizes.wanted), masks)
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
    f = functions_of(mask_logits)
    class_logits = f.float32(class_logits)
    probabilities = f.softmax(class_logits)[:, :-1].flatten()
    _, index = f.topk(probabilities, min(max_instances, len(probabilities)))
    # In order, so that the same pair is first where two are equal.
    rows = f.unique(index // (class_logits.shape[1] - 1))
    masks = final_masks(f.float32(mask_logits[rows]), *sizes)
    return instance_masks(masks, class_logits[rows], is_thing, max_instances=max_instances)
