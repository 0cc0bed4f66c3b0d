"""Evaluation of detection: AP of COCO and LVIS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fiber.data.prompts.classes import Prompt, class_prompts
from fiber.data.record import Record, RecordSet
from fiber.evaluation.context import EvalContext, EvalResult, entry_id
from fiber.evaluation.grounding import label_tokens, same_sized
from fiber.metrics.detection import ScoredBoxes, TrueBoxes, average_precision
from fiber.metrics.lvis import BestOfClasses, FederatedTruth, fixed_average_precision
from fiber.postprocess import FoundBoxes, detect_boxes, join_chunks

#: Detections of an image that COCO's protocol keeps.
COCO_DETECTIONS = 100
#: As published for LVIS: classes of a prompt, and detections kept of a prompt in an image.
LVIS_CLASSES, LVIS_DETECTIONS = 40, 300
# Metrics that are also reported for corners as the published code writes them.
_COCO_METRICS, _LVIS_METRICS = ("ap", "ap50", "ap75"), ("ap", "apr", "apc", "apf")


class FoundInImage(NamedTuple):
    """Detections of all prompts in one image."""

    #: Index of its record.
    place: int
    #: For each prompt, half-open boxes in pixels of the original image.
    chunks: list[FoundBoxes]
    #: (width, height), in pixels of the original image, of a pixel that the model saw.
    pixel: tuple[float, float]


class EncodedPrompt(NamedTuple):
    """Prompt with its text features, computed once for all images."""

    #: (1, L, D) text features below the first fused layer.
    prefix: Tensor
    #: (1, L) bool.
    mask: Tensor
    #: For each label the indices of its tokens.
    tokens: list[list[int]]
    #: Index of the first label in the list of all labels.
    first_label: int
    #: Detections kept in an image.
    max_detections: int


def coco(context: EvalContext, records: RecordSet) -> EvalResult:
    """Evaluate detection of all classes of the records in every image: COCO AP.

    Predictions are in COCO's result format with the category ids of the annotation file; records
    without `label_ids` count their labels from 1.
    """
    asked = detection_records(records)
    names = asked[0].labels
    ids = category_ids(asked[0])
    found: list[ScoredBoxes] = [ScoredBoxes([], [], [])] * len(asked)
    predictions: list[list[dict[str, Any]]] = [[]] * len(asked)
    prompts = encode_classes(context, names, classes_per_prompt=context.classes_per_prompt or 0)
    firsts = [prompt.first_label for prompt in prompts]
    published = list(found)
    for place, chunks, (width, height) in detect(context, asked, prompts):
        joined = join_chunks(chunks, firsts, max_detections=COCO_DETECTIONS)
        found[place] = own = scored_boxes(joined)
        # Published: corners include the last pixel, which is one of the original image.
        corners = own.boxes_xyxy + np.array([0, 0, 1 - width, 1 - height])
        published[place] = own._replace(boxes_xyxy=corners)
        predictions[place] = coco_results(asked[place], joined, ids)
    truths = [true_boxes(record) for record in asked]
    metrics = _defined(average_precision(found, truths))
    as_published = average_precision(published, truths)
    metrics |= _defined({f"published_{name}": as_published[name] for name in _COCO_METRICS})
    return EvalResult(metrics, [entry for entries in predictions for entry in entries])


def lvis(context: EvalContext, records: RecordSet) -> EvalResult:
    """Evaluate detection of the classes of LVIS: fixed AP.

    As published, prompts have 40 classes and keep their best 300 detections in an image;
    `classes_per_prompt` changes the first, and larger prompts keep proportionally more. Predictions
    are the detections that count, in LVIS' result format.

    Raises:
        ValueError: for records without the classes that are absent from their images.
    """
    asked = detection_records(records)
    names, ids = asked[0].labels, category_ids(asked[0])
    truths = [_federated(record) for record in asked]
    size = LVIS_CLASSES if context.classes_per_prompt is None else context.classes_per_prompt
    prompts = encode_classes(context, names, classes_per_prompt=size, kept=_lvis_boxes)
    firsts = [prompt.first_label for prompt in prompts]
    best = BestOfClasses(len(names))
    pixels = np.zeros((len(asked), 2))
    for place, chunks, pixel in detect(context, asked, prompts):
        joined = join_chunks(chunks, firsts)
        best.add(place, *(part.cpu().numpy() for part in joined))
        pixels[place] = pixel
    kept, groups = best.table(), asked[0].label_groups or ("",) * len(names)
    metrics = _defined(fixed_average_precision(kept, truths, groups))
    # Published: boxes lack their last pixel on the right and at the bottom.
    corners = kept.boxes_xyxy - np.concatenate([np.zeros((len(asked), 2)), pixels], 1)[kept.images]
    as_published = fixed_average_precision(kept._replace(boxes_xyxy=corners), truths, groups)
    metrics |= _defined({f"published_{name}": as_published[name] for name in _LVIS_METRICS})
    results = [
        _result(asked[place], box, score, ids[label])
        for place, box, score, label in zip(
            kept.images.tolist(),
            kept.boxes_xyxy.tolist(),
            kept.scores.tolist(),
            kept.classes.tolist(),
            strict=True,
        )
    ]
    return EvalResult(metrics, results)


def _lvis_boxes(classes: int) -> int:
    """Return the detections kept of a prompt: 300, proportionally more of larger prompts."""
    return max(LVIS_DETECTIONS, LVIS_DETECTIONS * classes // LVIS_CLASSES)


def _federated(record: Record) -> FederatedTruth:
    objects = record.objects
    if objects is None or objects.absent is None:
        raise ValueError(
            f"record {record.key!r} does not say which classes its image lacks (LVIS'"
            " 'neg_category_ids'); expected an annotation file of LVIS, or task 'coco'"
        )
    return FederatedTruth(
        objects.boxes_xyxy, objects.labels, objects.absent, objects.incomplete, objects.areas
    )


def _defined(metrics: dict[str, float]) -> dict[str, float]:
    """Drop metrics that are NaN for want of ground-truth boxes, all but "ap"."""
    return {name: value for name, value in metrics.items() if name == "ap" or value == value}


def detection_records(records: RecordSet) -> list[Record]:
    """List records by image id if all ids are numbers, the order of COCO's evaluation.

    Raises:
        ValueError: if they differ in their classes.
    """
    asked = [records[i] for i in range(len(records))]
    names = asked[0].labels
    if any(record.labels != names for record in asked):
        raise ValueError("detection needs the same labels (class names) in every record")
    numbers = [entry_id(record.key) for record in asked]
    if all(isinstance(number, int) for number in numbers):
        return [asked[i] for i in sorted(range(len(asked)), key=numbers.__getitem__)]
    return asked


def category_ids(record: Record) -> Sequence[int]:
    """Return the category ids of a record's classes in result files."""
    return record.label_ids or range(1, len(record.labels) + 1)


def true_boxes(record: Record) -> TrueBoxes:
    """Return the ground-truth boxes of a record."""
    objects = record.objects
    if objects is None:
        return TrueBoxes(record.boxes_xyxy, record.box_labels)
    return TrueBoxes(objects.boxes_xyxy, objects.labels, objects.crowd, objects.areas)


def scored_boxes(found: FoundBoxes) -> ScoredBoxes:
    """Convert detections for the metrics."""
    return ScoredBoxes(
        found.boxes_xyxy.cpu().numpy(), found.scores.cpu().numpy(), found.label_indices.tolist()
    )


def coco_results(record: Record, found: FoundBoxes, ids: Sequence[int]) -> list[dict[str, Any]]:
    """Convert detections of an image to COCO's result format.

    Args:
        record: record whose key ends in the image id.
        found: detections.
        ids: category id of each label.
    """
    rows = zip(
        found.boxes_xyxy.tolist(), found.scores.tolist(), found.label_indices.tolist(), strict=True
    )
    return [_result(record, box, score, ids[label]) for box, score, label in rows]


def _result(record: Record, box: list[float], score: float, category: int) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return {
        "image_id": entry_id(record.key),
        "category_id": category,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "score": score,
    }


def encode_classes(
    context: EvalContext,
    names: Sequence[str],
    *,
    classes_per_prompt: int = 0,
    kept: Callable[[int], int] = lambda classes: COCO_DETECTIONS,
) -> list[EncodedPrompt]:
    """Join class names into prompts, and run the text tower below the first fused layer.

    Args:
        context: model and options.
        names: names of all classes.
        classes_per_prompt: most classes of a prompt; 0: as many as fit the text tower.
        kept: maps a prompt's number of classes to the detections kept in an image.

    Raises:
        ValueError: if `context.classes` has another number of classes, or one class alone does not
            fit the text tower.
    """
    asked = []
    for prompt in _prompts(context, names, classes_per_prompt):
        ids, mask = context.texts([prompt.text])
        asked.append(
            EncodedPrompt(
                context.network.backbone.text_prefix(ids, mask),
                mask,
                label_tokens(context, prompt.text, prompt.spans),
                prompt.first_label,
                kept(len(prompt.labels)),
            )
        )
    return asked


def _prompts(context: EvalContext, names: Sequence[str], classes_per_prompt: int) -> list[Prompt]:
    """Join `context.classes`, by default the names, into prompts."""
    classes = names if context.classes is None else context.classes
    if len(classes) != len(names):
        raise ValueError(
            f"classes: got {len(classes)}; expected {len(names)}: {', '.join(names)[:200]}"
        )
    return class_prompts(
        classes,
        context.tokenizer,
        context.network.config.max_tokens,
        max_classes=classes_per_prompt or None,
    )


def detect(
    context: EvalContext, asked: list[Record], prompts: Sequence[EncodedPrompt]
) -> Iterator[FoundInImage]:
    """Run all prompts on every image; its image tower below the first fused block runs once.

    Args:
        context: model and options.
        asked: records of the images.
        prompts: prompts of `encode_classes`.

    Yields:
        Detections of each image, in any order.
    """
    network = context.detector
    for batch, places in same_sized(context, asked):
        prefix = network.backbone.image_prefix(batch.images)
        count = len(batch.images)
        chunks = []
        for prompt in prompts:
            text, mask = prompt.prefix.expand(count, -1, -1), prompt.mask.expand(count, -1)
            chunks.append(
                detect_boxes(
                    network.predict(network.backbone.fuse(prefix, text, mask)),
                    [prompt.tokens] * count,
                    batch.image_sizes,
                    batch.original_sizes,
                    max_detections=prompt.max_detections,
                )
            )
        heights, widths = (batch.original_sizes / batch.image_sizes).T.tolist()
        for row, place in enumerate(places):
            found = [chunk[row] for chunk in chunks]
            yield FoundInImage(place, found, (widths[row], heights[row]))
