"""COCO detection metrics: AP and AR, computed by faster-coco-eval.

Detections with the same score are ranked in image order; COCO's code ranks them by image id. A
metric without ground-truth boxes is NaN; COCO's code reports -1.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import ArrayLike, NDArray

from fiber.metrics.boxes import as_boxes

#: IoU thresholds of COCO's AP.
COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
#: COCO's limits on detections per image and class. Precision uses the last one.
COCO_LIMITS = (1, 10, 100)
#: What IoU is computed of: boxes, or masks.
IouType = Literal["bbox", "segm"]
#: Metric suffixes for the area ranges, in faster-coco-eval's order.
SIZES = ("small", "medium", "large")


class ScoredBoxes(NamedTuple):
    """Detections in one image."""

    #: (N, 4) half-open xyxy.
    boxes_xyxy: ArrayLike
    #: (N,), higher is better.
    scores: ArrayLike
    #: (N,) class names or numbers.
    labels: Sequence[Hashable]


class TrueBoxes(NamedTuple):
    """Ground truth of one image."""

    #: (G, 4) half-open xyxy.
    boxes_xyxy: ArrayLike
    #: (G,) class names or numbers.
    labels: Sequence[Hashable]
    #: (G,) True for a crowd region: detections in it are ignored. None if there are no crowds.
    crowd: ArrayLike | None = None
    #: (G,) object areas in square pixels, which determine area ranges. None uses box areas.
    areas: ArrayLike | None = None


class Curves(NamedTuple):
    """Precision and recall; NaN for a class without ground truth in an area range.

    Shapes: T IoU thresholds, R recall points, C classes, A area ranges (all, small, medium, large),
    M detection limits.
    """

    #: (T, R, C, A), at the last detection limit.
    precision: NDArray[np.float64]
    #: (T, C, A, M).
    recall: NDArray[np.float64]


def average_precision(
    detections: Sequence[ScoredBoxes], truths: Sequence[TrueBoxes]
) -> dict[str, float]:
    """Compute COCO's average precision and recall over all classes with ground truth.

    Detections and ground truth have one entry per image, with boxes in pixel coordinates.

    Returns:
        `ap`, `ap50` and `ap75`; `ar_at_{limit}` for each limit in `COCO_LIMITS`; at the last limit,
        `ap_{size}` and `ar_{size}` for objects of size `small` (up to 32 x 32 pixels), `medium` (up
        to 96 x 96) and `large`. Metrics without ground truth are NaN.

    Raises:
        ValueError: if the numbers of images, boxes, scores, labels, crowd flags or areas differ.
    """
    if len(detections) != len(truths):
        raise ValueError(f"expected detections for {len(truths)} images, got {len(detections)}")
    numbers: dict[Hashable, int] = {}

    def category_ids(labels: Sequence[Hashable]) -> list[int]:
        return [numbers.setdefault(label, len(numbers)) for label in labels]

    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (found, truth) in enumerate(zip(detections, truths, strict=True)):
        boxes, scores, labels = checked_detections(image, found)
        results += coco_entries(
            image, category_ids(labels), boxes, first_id=len(results) + 1, score=scores
        )
        boxes, labels, crowd, areas = checked_truth(image, truth)
        annotations += coco_entries(
            image,
            category_ids(labels),
            boxes,
            first_id=len(annotations) + 1,
            iscrowd=crowd,
            area=areas,
        )
    images = [{"id": image} for image in range(len(truths))]
    return coco_metrics(images, len(numbers), annotations, results)


def coco_metrics(
    images: list[dict[str, Any]],
    num_classes: int,
    annotations: list[dict[str, Any]],
    results: list[dict[str, Any]],
    iou_type: IouType = "bbox",
) -> dict[str, float]:
    """Compute the metrics of `average_precision` from `coco_entries` with category ids from 0."""
    curves = coco_curves(
        images, range(num_classes), annotations, results, limits=COCO_LIMITS, iou_type=iou_type
    )
    metrics = mean_ap(curves.precision)
    for index, limit in enumerate(COCO_LIMITS):
        metrics[f"ar_at_{limit}"] = nan_mean(curves.recall[:, :, 0, index])
    for area, name in enumerate(SIZES, start=1):
        metrics[f"ap_{name}"] = nan_mean(curves.precision[..., area])
        metrics[f"ar_{name}"] = nan_mean(curves.recall[:, :, area, -1])
    return metrics


def coco_curves(
    images: list[dict[str, Any]],
    category_ids: Sequence[int],
    annotations: list[dict[str, Any]],
    results: list[dict[str, Any]],
    *,
    limits: Sequence[int],
    thresholds: Sequence[float] = COCO_THRESHOLDS,
    lvis_style: bool = False,
    iou_type: IouType = "bbox",
) -> Curves:
    """Run faster-coco-eval on `coco_entries` of ground truth and detections.

    `limits` (maximum detections per image and class) and `category_ids` are ascending. With
    `lvis_style`, images list their verified classes; detections of unverified classes and false
    positives of non-exhaustively annotated ones are ignored. With `iou_type` "segm", images have
    `height` and `width`, and entries `segmentation`.
    """
    # LVIS mode requires a frequency; the caller averages over class groups itself.
    categories = [{"id": number, "frequency": "f"} for number in category_ids]
    truth = {"images": images, "categories": categories, "annotations": annotations}
    evaluation = COCOeval_faster(
        COCO(truth), COCO({**truth, "annotations": results}), iou_type, lvis_style=lvis_style
    )
    evaluation.params.iouThrs = np.asarray(thresholds, dtype=np.float64)
    evaluation.params.maxDets = list(limits)
    evaluation.evaluate()
    evaluation.accumulate()
    precision, recall = (
        np.where(values < 0, np.nan, values)
        for values in (evaluation.eval["precision"], evaluation.eval["recall"])
    )
    return Curves(precision[..., -1], recall)


def coco_entries(
    image_ids: ArrayLike,
    category_ids: ArrayLike,
    boxes_xyxy: NDArray[np.float64],
    *,
    first_id: int = 1,
    **columns: NDArray[Any],
) -> list[dict[str, Any]]:
    """Build COCO annotation or result entries for N boxes in half-open pixel coordinates.

    `image_ids` may be one id for all boxes. Ids start at `first_id`, which must not be 0, since 0
    means "unmatched" in faster-coco-eval. `area` defaults to the box areas, `iscrowd` to 0.
    """
    count, sizes = len(boxes_xyxy), boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    columns = {
        "id": np.arange(first_id, first_id + count),
        "image_id": np.broadcast_to(image_ids, count),
        "category_id": np.asarray(category_ids),
        "bbox": np.concatenate([boxes_xyxy[:, :2], sizes], axis=1),
        "area": sizes.prod(1),
        "iscrowd": np.zeros(count, np.int64),
        **columns,
    }
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def mean_ap(precision: NDArray[np.float64]) -> dict[str, float]:
    """Compute `ap`, `ap50` and `ap75` from (T, R, C, A) precision."""
    whole = precision[..., 0]
    return {
        "ap": nan_mean(whole),
        "ap50": nan_mean(whole[np.isclose(COCO_THRESHOLDS, 0.5)]),
        "ap75": nan_mean(whole[np.isclose(COCO_THRESHOLDS, 0.75)]),
    }


def nan_mean(values: NDArray[np.float64]) -> float:
    """Average the values that are not NaN; return NaN without a warning if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def checked_detections(
    image: int, found: ScoredBoxes
) -> tuple[NDArray[np.float64], NDArray[np.float64], Sequence[Hashable]]:
    """Validate and return an image's boxes, scores and labels."""
    boxes, scores, labels = found
    boxes, scores = as_boxes(boxes), np.asarray(scores, dtype=np.float64)
    if not len(boxes) == len(scores) == len(labels):
        raise ValueError(
            f"image {image} has {len(boxes)} detected boxes, {len(scores)} scores and"
            f" {len(labels)} labels; expected the same number of each"
        )
    return boxes, scores, labels


def checked_truth(
    image: int, truth: TrueBoxes
) -> tuple[NDArray[np.float64], Sequence[Hashable], NDArray[np.int64], NDArray[np.float64]]:
    """Validate and return an image's boxes, labels, crowd flags (0 or 1) and areas."""
    boxes, labels, crowd, areas = TrueBoxes(*truth)
    boxes = as_boxes(boxes)
    crowd = np.asarray([False] * len(boxes) if crowd is None else crowd, dtype=bool)
    areas = np.asarray(
        (boxes[:, 2:] - boxes[:, :2]).prod(1) if areas is None else areas, dtype=np.float64
    )
    if not len(boxes) == len(crowd) == len(areas) == len(labels):
        raise ValueError(
            f"image {image} has {len(boxes)} ground-truth boxes, {len(labels)} labels,"
            f" {len(crowd)} crowd flags and {len(areas)} areas; expected the same number of each"
        )
    return boxes, labels, crowd.astype(np.int64), areas
