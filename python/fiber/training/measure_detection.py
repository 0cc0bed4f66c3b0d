"""Measurements of the fine model: boxes of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fiber.data.prompts import Prompt, class_prompts
from fiber.data.records import Record, RecordSet
from fiber.metrics.detection import ScoredBoxes, TrueBoxes, average_precision
from fiber.metrics.lvis import BestOfClasses, FederatedTruth, fixed_average_precision
from fiber.postprocess import FoundBoxes, detect_boxes, join_chunks
from fiber.training.measure import Measured, Subject, entry_id
from fiber.training.measure_boxes import label_tokens, same_sized

#: Boxes of a picture that COCO's protocol keeps.
COCO_DETECTIONS = 100
#: As published for LVIS: classes of a prompt, and boxes of a picture that are kept of each.
LVIS_CLASSES, LVIS_DETECTIONS = 40, 300
# Numbers that are also given for boxes with the corners that the published code writes.
_COCO_NUMBERS, _LVIS_NUMBERS = ("ap", "ap50", "ap75"), ("ap", "apr", "apc", "apf")


class FoundInPicture(NamedTuple):
    """What the prompts found in one picture."""

    #: Place of its record.
    place: int
    #: For each prompt, half-open boxes of the original picture.
    chunks: list[FoundBoxes]
    #: (width, height), in pixels of the original picture, of a pixel that the model saw.
    pixel: tuple[float, float]


class AskedPrompt(NamedTuple):
    """A prompt as the model reads it, computed once for all pictures."""

    #: (1, L, D), what the text tower computes below the first fused layer.
    prefix: Tensor
    #: (1, L) bool.
    mask: Tensor
    #: For each label the indices of its tokens.
    tokens: list[list[int]]
    #: Place of the first label in the whole list of labels.
    first_label: int
    #: Boxes kept of a picture.
    max_detections: int


def coco(subject: Subject, records: RecordSet) -> Measured:
    """Detect classes; all classes of the records are asked for in every picture.

    The predictions are COCO's result format, with the category ids of the annotation file; records
    of one's own without `label_ids` have the places of the names in their labels, from 1.
    """
    asked = detection_records(records)
    names = asked[0].labels
    ids = category_ids(asked[0])
    found: list[ScoredBoxes] = [ScoredBoxes([], [], [])] * len(asked)
    predictions: list[list[dict[str, Any]]] = [[]] * len(asked)
    prompts = ask_classes(subject, names, classes_per_prompt=subject.classes_per_prompt or 0)
    firsts = [prompt.first_label for prompt in prompts]
    published = list(found)
    for place, chunks, (width, height) in detect(subject, asked, prompts):
        joined = join_chunks(chunks, firsts, max_detections=COCO_DETECTIONS)
        found[place] = own = scored_boxes(joined)
        # Published: the last pixel is one of the original picture.
        corners = own.boxes_xyxy + np.array([0, 0, 1 - width, 1 - height])
        published[place] = own._replace(boxes_xyxy=corners)
        predictions[place] = coco_results(asked[place], joined, ids)
    truths = [true_boxes(record) for record in asked]
    numbers = _seen(average_precision(found, truths))
    as_published = average_precision(published, truths)
    numbers |= _seen({f"published_{name}": as_published[name] for name in _COCO_NUMBERS})
    return Measured(numbers, [entry for entries in predictions for entry in entries])


def lvis(subject: Subject, records: RecordSet) -> Measured:
    """Detect the classes of LVIS: fixed AP.

    As published, prompts ask for 40 classes each and the best 300 boxes of each prompt are kept in
    a picture; `classes_per_prompt` changes the first, and larger prompts keep more boxes in
    proportion. The predictions are the boxes that count, in LVIS' result format.

    Raises:
        ValueError: for records that do not say which classes are absent from their pictures.
    """
    asked = detection_records(records)
    names, ids = asked[0].labels, category_ids(asked[0])
    truths = [_federated(record) for record in asked]
    size = LVIS_CLASSES if subject.classes_per_prompt is None else subject.classes_per_prompt
    prompts = ask_classes(subject, names, classes_per_prompt=size, kept=_lvis_boxes)
    firsts = [prompt.first_label for prompt in prompts]
    best = BestOfClasses(len(names))
    pixels = np.zeros((len(asked), 2))
    for place, chunks, pixel in detect(subject, asked, prompts):
        joined = join_chunks(chunks, firsts)
        best.add(place, *(part.cpu().numpy() for part in joined))
        pixels[place] = pixel
    kept, groups = best.table(), asked[0].label_groups or ("",) * len(names)
    numbers = _seen(fixed_average_precision(kept, truths, groups))
    # Published: boxes lack their last pixel on the right and below.
    corners = kept.boxes_xyxy - np.concatenate([np.zeros((len(asked), 2)), pixels], 1)[kept.images]
    as_published = fixed_average_precision(kept._replace(boxes_xyxy=corners), truths, groups)
    numbers |= _seen({f"published_{name}": as_published[name] for name in _LVIS_NUMBERS})
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
    return Measured(numbers, results)


def _lvis_boxes(classes: int) -> int:
    """Boxes of a prompt that are kept: 300, and of larger ones in proportion."""
    return max(LVIS_DETECTIONS, LVIS_DETECTIONS * classes // LVIS_CLASSES)


def _federated(record: Record) -> FederatedTruth:
    objects = record.objects
    if objects is None or objects.absent is None:
        raise ValueError(
            f"record {record.key!r} does not say which classes its picture lacks (LVIS'"
            " 'neg_category_ids'); expected an annotation file of LVIS, or task 'coco'"
        )
    return FederatedTruth(
        objects.boxes_xyxy, objects.labels, objects.absent, objects.incomplete, objects.areas
    )


def _seen(numbers: dict[str, float]) -> dict[str, float]:
    """Leave out what no true box has; without any true box AP stays, NaN."""
    return {name: value for name, value in numbers.items() if name == "ap" or value == value}


def detection_records(records: RecordSet) -> list[Record]:
    """List records in the order of their pictures' ids, where all are numbers, as COCO counts them.

    Raises:
        ValueError: if they differ in the classes that they ask for.
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
    """Ids of a record's classes in result files."""
    return record.label_ids or range(1, len(record.labels) + 1)


def true_boxes(record: Record) -> TrueBoxes:
    """What a record's detections are measured by."""
    objects = record.objects
    if objects is None:
        return TrueBoxes(record.boxes_xyxy, record.box_labels)
    return TrueBoxes(objects.boxes_xyxy, objects.labels, objects.crowd, objects.areas)


def scored_boxes(found: FoundBoxes) -> ScoredBoxes:
    """What was found, as metrics read it."""
    return ScoredBoxes(
        found.boxes_xyxy.cpu().numpy(), found.scores.cpu().numpy(), found.label_indices.tolist()
    )


def coco_results(record: Record, found: FoundBoxes, ids: Sequence[int]) -> list[dict[str, Any]]:
    """Write what was found in a picture in COCO's result format.

    Args:
        record: whose key ends in the id of the picture.
        found: its boxes.
        ids: of each label's category.
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


def ask_classes(
    subject: Subject,
    names: Sequence[str],
    *,
    classes_per_prompt: int = 0,
    kept: Callable[[int], int] = lambda classes: COCO_DETECTIONS,
) -> list[AskedPrompt]:
    """Write class names into prompts, and run the text tower as far as no picture is needed.

    Args:
        subject: the model.
        names: of all classes.
        classes_per_prompt: at most; 0: as many as the text tower holds.
        kept: of a prompt's number of classes, how many of its boxes are kept in a picture.

    Raises:
        ValueError: if the subject has another number of classes, or a class does not fit
            the text tower alone.
    """
    asked = []
    for prompt in _prompts(subject, names, classes_per_prompt):
        ids, mask = subject.texts([prompt.text])
        asked.append(
            AskedPrompt(
                subject.network.backbone.text_prefix(ids, mask),
                mask,
                label_tokens(subject, prompt.text, prompt.spans),
                prompt.first_label,
                kept(len(prompt.labels)),
            )
        )
    return asked


def _prompts(subject: Subject, names: Sequence[str], classes_per_prompt: int) -> list[Prompt]:
    """Join the classes, or their names alone."""
    classes = names if subject.classes is None else subject.classes
    if len(classes) != len(names):
        raise ValueError(
            f"{len(classes)} classes are given; expected {len(names)}: {', '.join(names)[:200]}"
        )
    return class_prompts(
        classes,
        subject.tokenizer,
        subject.network.config.max_tokens,
        max_classes=classes_per_prompt or None,
    )


def detect(
    subject: Subject, asked: list[Record], prompts: Sequence[AskedPrompt]
) -> Iterator[FoundInPicture]:
    """Ask all prompts of every picture, whose trunk below the first fused block runs once.

    Args:
        subject: the model.
        asked: records that show the pictures.
        prompts: of `ask_classes`.

    Yields:
        What was found, picture by picture, in any order.
    """
    network = subject.detector
    for batch, places in same_sized(subject, asked):
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
            yield FoundInPicture(place, found, (widths[row], heights[row]))
