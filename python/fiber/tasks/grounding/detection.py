"""Evaluate detection by COCO AP and LVIS fixed AP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from fiber.data.prompts.classes import Prompt, class_prompts
from fiber.data.record import Record
from fiber.evaluation.context import EvalContext, EvalResult, entry_id
from fiber.inference.boxes import boxes_of_images
from fiber.messages import shown
from fiber.metrics.detection import ScoredBoxes, TrueBoxes, average_precision
from fiber.metrics.lvis import BestOfClasses, FederatedTruth, fixed_average_precision
from fiber.models.abilities import FindsBoxes
from fiber.postprocess import FoundBoxes, detect_boxes
from fiber.tasks.grounding.evaluate import ASKED, encoded_prompts, run_same_sized

#: Maximum detections per image in COCO's protocol.
COCO_DETECTIONS = 100
#: Published settings for LVIS: classes per prompt, and detections kept per prompt and image.
LVIS_CLASSES, LVIS_DETECTIONS = 40, 300
# Metrics that are also reported with the box corners of the published code.
_COCO_METRICS, _LVIS_METRICS = ("ap", "ap50", "ap75"), ("ap", "apr", "apc", "apf")


class FoundInImage(NamedTuple):
    """Detections in one image, from all prompts."""

    #: Index of the image's record.
    place: int
    #: Detections on the CPU, in half-open pixel coordinates of the original image.
    boxes: FoundBoxes
    #: (width, height) of a model input pixel, in pixels of the original image.
    pixel: tuple[float, float]


def coco(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate detection of all classes in every image by COCO AP.

    Predictions are in COCO's result format, with the category ids of the annotation file. If the
    records have no `label_ids`, category ids start at 1.
    """
    records = detection_records(records)
    names, ids = records[0].labels, category_ids(records[0])
    found: list[ScoredBoxes] = [ScoredBoxes([], [], [])] * len(records)
    predictions: list[list[dict[str, Any]]] = [[]] * len(records)
    prompts = prompts_of(context, names, context.classes_per_prompt or 0)
    published = list(found)
    for place, joined, (width, height) in detect(context, records, prompts):
        found[place] = own = scored_boxes(joined)
        # Published corners: subtract one input pixel and add one pixel of the original image.
        corners = own.boxes_xyxy + np.array([0, 0, 1 - width, 1 - height])
        published[place] = own._replace(boxes_xyxy=corners)
        rows = zip(*(column.tolist() for column in joined), strict=True)
        predictions[place] = [
            _result(records[place], box, score, ids[label]) for box, score, label in rows
        ]
    truths = [true_boxes(record) for record in records]
    metrics = _with_published(
        average_precision(found, truths), average_precision(published, truths), _COCO_METRICS
    )
    return EvalResult(metrics, [entry for entries in predictions for entry in entries])


def lvis(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate detection of LVIS classes by fixed AP.

    As in the published code, a prompt has 40 classes by default (see `classes_per_prompt`), and the
    best 300 detections of a prompt are kept per image. Larger prompts keep proportionally more
    detections. Predictions are the detections used by fixed AP, in LVIS's result format.

    Raises:
        ValueError: if a record does not list the classes that are absent from its image.
    """
    records = detection_records(records)
    names, ids = records[0].labels, category_ids(records[0])
    truths = [_federated(record) for record in records]
    size = LVIS_CLASSES if context.classes_per_prompt is None else context.classes_per_prompt
    prompts = prompts_of(context, names, size)
    best = BestOfClasses(len(names))
    pixels = np.zeros((len(records), 2))
    for place, joined, pixel in detect(context, records, prompts, None, _lvis_boxes):
        best.add(place, *(part.numpy() for part in joined))
        pixels[place] = pixel
    kept, groups = best.table(), records[0].label_groups or ("",) * len(names)
    # Published boxes exclude the last input pixel on the right and at the bottom.
    corners = kept.boxes_xyxy - np.pad(pixels, ((0, 0), (2, 0)))[kept.images]
    metrics = _with_published(
        fixed_average_precision(kept, truths, groups),
        fixed_average_precision(kept._replace(boxes_xyxy=corners), truths, groups),
        _LVIS_METRICS,
    )
    columns = kept.images, kept.boxes_xyxy, kept.scores, kept.classes
    results = [
        _result(records[place], box, score, ids[label])
        for place, box, score, label in zip(*(c.tolist() for c in columns), strict=True)
    ]
    return EvalResult(metrics, results)


def _lvis_boxes(classes: int) -> int:
    """Return the number of detections to keep for a prompt with the given number of classes."""
    return max(LVIS_DETECTIONS, LVIS_DETECTIONS * classes // LVIS_CLASSES)


def _federated(record: Record) -> FederatedTruth:
    objects = record.objects
    if objects is None or objects.absent is None:
        raise ValueError(
            f"record {shown(record.key)} does not list the classes absent from its image (LVIS key"
            " 'neg_category_ids'); expected an LVIS annotation file, or task 'coco'"
        )
    return FederatedTruth(
        objects.boxes_xyxy, objects.labels, objects.absent, objects.incomplete, objects.areas
    )


def _with_published(
    own: dict[str, float], published: dict[str, float], names: Sequence[str]
) -> dict[str, float]:
    """Add the published metrics. Drop NaN values (no ground-truth boxes), except for "ap"."""
    metrics = own | {f"published_{name}": published[name] for name in names}
    return {name: value for name, value in metrics.items() if name == "ap" or value == value}


def detection_records(records: list[Record]) -> list[Record]:
    """Sort records by image id if all ids are numbers, as in COCO's evaluation.

    Raises:
        ValueError: if the records do not all have the same classes.
    """
    for record in records:
        if record.labels != records[0].labels:
            raise ValueError(
                f"records {shown(records[0].key)} and {shown(record.key)} have different labels;"
                " detection"
                " requires the same labels (class names) in every record"
            )
    ids = [entry_id(record.key) for record in records]
    if all(isinstance(number, int) for number in ids):
        return [records[i] for i in sorted(range(len(records)), key=ids.__getitem__)]
    return records


def category_ids(record: Record) -> Sequence[int]:
    """Return the category ids that result files use for a record's classes."""
    return record.label_ids or range(1, len(record.labels) + 1)


def true_boxes(record: Record) -> TrueBoxes:
    """Return a record's ground-truth boxes."""
    objects = record.objects
    if objects is None:
        return TrueBoxes(record.boxes_xyxy, record.box_labels)
    return TrueBoxes(objects.boxes_xyxy, objects.labels, objects.crowd, objects.areas)


def scored_boxes(found: FoundBoxes) -> ScoredBoxes:
    """Convert detections to the input type of the metrics."""
    return ScoredBoxes(
        found.boxes_xyxy.cpu().numpy(), found.scores.cpu().numpy(), found.label_indices.tolist()
    )


def _result(record: Record, box: list[float], score: float, category: int) -> dict[str, Any]:
    """Return a detection in COCO's result format."""
    x0, y0, x1, y1 = box
    return {
        "image_id": entry_id(record.key),
        "category_id": category,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "score": score,
    }


def prompts_of(
    context: EvalContext, names: Sequence[str], classes_per_prompt: int = 0
) -> list[Prompt]:
    """Join `context.classes` (default: `names`) into prompts.

    A prompt has as many classes as fit the text encoder, but at most `classes_per_prompt` unless
    this is 0.

    Raises:
        ValueError: if the number of `context.classes` is wrong, or a single class does not fit the
            text encoder.
    """
    classes = names if context.classes is None else context.classes
    if len(classes) != len(names):
        raise ValueError(
            f"got {len(classes)} classes, expected {len(names)} (one for each class of the data:"
            f" {', '.join(names)[:200]})"
        )
    limit = context.network.config.max_tokens
    return class_prompts(classes, context.tokenizer, limit, max_classes=classes_per_prompt or None)


def detect(
    context: EvalContext,
    records: list[Record],
    prompts: Sequence[Prompt],
    max_detections: int | None = COCO_DETECTIONS,
    kept: Callable[[int], int] = lambda classes: COCO_DETECTIONS,
) -> Iterator[FoundInImage]:
    """Yield the detections in each image from all prompts. The order of images is unspecified.

    `kept` maps a prompt's number of classes to its number of detections per image, and
    `max_detections` limits the detections of all prompts together.
    """
    network = context.able(FindsBoxes, ASKED)
    text_prefixes = encoded_prompts(context, network, keep_all=True)

    def detect_all(batch: Any, places: list[int]) -> list[FoundInImage]:
        joined = boxes_of_images(
            network,
            text_prefixes,
            batch,
            # One prompt at a time, so that none is padded.
            [[(row, prompt) for row in range(len(places))] for prompt in prompts],
            lambda output, maps, *sizes: detect_boxes(
                output, maps, *sizes, max_detections=kept(len(maps[0]))
            ),
            max_detections,
        )
        pixels = (batch.original_sizes / batch.image_sizes).tolist()
        return [
            FoundInImage(place, boxes.copied_to_cpu(), (width, height))
            for place, boxes, (height, width) in zip(places, joined, pixels, strict=True)
        ]

    return chain.from_iterable(run_same_sized(context, records, detect_all))
