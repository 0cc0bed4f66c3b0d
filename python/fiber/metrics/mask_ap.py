"""Average precision of instance masks as defined by COCO, computed by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as coco_masks
from numpy.typing import ArrayLike, NDArray

from fiber.metrics.detection import coco_entries, coco_metrics

#: Mask in COCO's compressed run-length encoding: {"size": [H, W], "counts": ...}.
CocoRle = dict[str, Any]


class ScoredMasks(NamedTuple):
    """Instances found in one image."""

    #: N masks, see `encode_masks`.
    masks: Sequence[CocoRle]
    #: (N,), higher is better.
    scores: ArrayLike
    #: (N,) class names or numbers.
    labels: Sequence[Hashable]


class TrueMasks(NamedTuple):
    """Ground truth of one image."""

    #: G masks, see `encode_masks`.
    masks: Sequence[CocoRle]
    #: (G,) class names or numbers.
    labels: Sequence[Hashable]
    #: (G,) True for a crowd: instances in it are ignored. None if there are no crowds.
    crowd: ArrayLike | None = None
    #: (G,) areas in square pixels, which determine area ranges. None uses those of the masks.
    areas: ArrayLike | None = None


def encode_masks(masks: ArrayLike) -> list[CocoRle]:
    """Encode (N, H, W) bool masks.

    Raises:
        ValueError: if there are not three dimensions.
    """
    given = np.asarray(masks, bool)
    if given.ndim != 3:
        raise ValueError(f"masks have shape {given.shape}; expected (N, H, W)")
    return [coco_masks.encode(np.asfortranarray(each, dtype=np.uint8)) for each in given]


def mask_average_precision(
    found: Sequence[ScoredMasks], truths: Sequence[TrueMasks]
) -> dict[str, float]:
    """Compute COCO's average precision and recall of masks over all classes with ground truth.

    Both have one entry per image.

    Returns:
        As `fiber.metrics.detection.average_precision`.

    Raises:
        ValueError: if the numbers of images, masks, scores, labels, crowd flags or areas differ, or
            masks of an image have several sizes.
    """
    if len(found) != len(truths):
        raise ValueError(f"expected instances of {len(truths)} images, got {len(found)}")
    numbers: dict[Hashable, int] = {}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def entries(
        image: int,
        masks: Sequence[CocoRle],
        labels: Sequence[Hashable],
        first_id: int,
        areas: ArrayLike | None = None,
        **columns: NDArray[Any],
    ) -> list[dict[str, Any]]:
        rles = np.empty(len(masks), object)
        rles[:] = masks
        boxes, own = np.zeros((len(masks), 4)), np.zeros(len(masks))
        if len(masks):
            boxes = np.asarray(coco_masks.toBbox(list(masks)), np.float64).reshape(-1, 4)
            own = np.asarray(coco_masks.area(list(masks)), np.float64)
        boxes[:, 2:] += boxes[:, :2]
        given = own if areas is None else np.asarray(areas, np.float64)
        ids = np.array([numbers.setdefault(label, len(numbers)) for label in labels], np.int64)
        return coco_entries(
            image, ids, boxes, first_id=first_id, segmentation=rles, area=given, **columns
        )

    for image, (own, truth) in enumerate(zip(found, truths, strict=True)):
        scores = np.asarray(own.scores, np.float64)
        _check(image, "found", own.masks, labels=own.labels, scores=scores)
        crowd = np.zeros(len(truth.masks), bool) if truth.crowd is None else truth.crowd
        crowd = np.asarray(crowd, bool)
        areas = np.zeros(len(truth.masks)) if truth.areas is None else np.asarray(truth.areas)
        _check(image, "true", truth.masks, labels=truth.labels, crowd=crowd, areas=areas)
        sizes = {tuple(each["size"]) for each in (*own.masks, *truth.masks)}
        if len(sizes) > 1:
            raise ValueError(f"image {image} has masks of sizes {sorted(sizes)}; expected one size")
        height, width = next(iter(sizes), (1, 1))
        images.append({"id": image, "height": height, "width": width})
        results += entries(image, own.masks, own.labels, len(results) + 1, score=scores)
        annotations += entries(
            image,
            truth.masks,
            truth.labels,
            len(annotations) + 1,
            truth.areas,
            iscrowd=crowd.astype(np.int64),
        )
    return coco_metrics(images, len(numbers), annotations, results, "segm")


def _check(image: int, name: str, masks: Sequence[CocoRle], **columns: Any) -> None:
    for column, values in columns.items():
        if len(values) != len(masks):
            raise ValueError(
                f"image {image} has {len(masks)} {name} masks and {len(values)} {column}; expected"
                " the same number"
            )
