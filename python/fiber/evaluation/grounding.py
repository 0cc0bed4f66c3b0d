"""Measurements of the fine model: boxes of expressions and phrases.

Each is measured twice on the same pass of the model. As we would do it: every phrase gets its own
best boxes, whatever the others score, and boxes are half-open. As published (names that start with
"published_"): detections of all phrases of a text compete for 100 places, and boxes are compared as
the published code writes them, without their last pixel on the right and below. Expressions are
published with GIoU in place of IoU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiber.data.datasets.mdetr import label_boxes
from fiber.data.prompts.classes import Prompt
from fiber.data.record import Record, RecordSet
from fiber.evaluation.context import Measured, Subject, with_groups
from fiber.metrics.grounding import phrase_recall, referring_accuracy
from fiber.postprocess import FoundBoxes, detect_boxes, ground_phrases

#: Boxes of each phrase that are looked at, as recall at 10 needs them.
BOXES_PER_PHRASE = 10
#: Numbers of boxes that are looked at.
KS = (1, 5, 10)
#: What the published code asks of a text: scores above which a box counts, and candidates a level.
PUBLISHED_REFERRING: Mapping[str, Any] = {"score_threshold": 0.0, "candidates_per_level": 3000}
PUBLISHED_PHRASES: Mapping[str, Any] = {"score_threshold": 0.05, "candidates_per_level": 1000}


class Grounded(NamedTuple):
    """What was found for the phrases of one text."""

    #: Best boxes of each phrase, half-open.
    own: FoundBoxes
    #: The best 100 of all phrases, corners as the published code has them.
    published: FoundBoxes


def refcoco(subject: Subject, records: RecordSet) -> Measured:
    """Find the one thing that each expression means."""
    asked = _needing_boxes(records)
    predicted, published, predictions = [], [], []
    for record, found in _ground(subject, asked, PUBLISHED_REFERRING):
        boxes, scores = _of_phrase(found.own, 0)
        predicted.append(boxes)
        published.append(_of_phrase(found.published, 0)[0])
        predictions.append(
            {
                "key": record.key,
                "box_xyxy": boxes[0].tolist() if len(boxes) else None,
                "score": float(scores[0]) if len(boxes) else 0.0,
            }
        )
    truths = np.array([record.boxes_xyxy[0] for record in asked])
    groups = [record.group for record in asked]
    metrics = with_groups(referring_accuracy, groups, predicted, truths, ks=KS)
    as_published = referring_accuracy(published, truths, KS)
    metrics |= {f"published_accuracy_at_{k}": as_published[f"giou_accuracy_at_{k}"] for k in KS}
    return Measured(metrics, predictions)


def flickr(subject: Subject, records: RecordSet) -> Measured:
    """Find the boxes of every phrase of a caption; phrases without a true box do not count."""
    asked = _needing_boxes(records)
    predicted, published, truths, kinds = [], [], [], []
    predictions: list[dict[str, Any]] = []
    for record, found in _ground(subject, asked, PUBLISHED_PHRASES):
        phrases = []
        for label, own in enumerate(label_boxes(record)):
            boxes, scores = _of_phrase(found.own, label)
            phrases.append(
                {
                    "phrase": record.labels[label],
                    "boxes_xyxy": boxes.tolist(),
                    "scores": scores.tolist(),
                }
            )
            if own:
                predicted.append(boxes)
                published.append(_of_phrase(found.published, label)[0])
                truths.append(np.array([record.boxes_xyxy[box] for box in own]))
                kinds.append(record.label_groups[label] if record.label_groups else "")
        predictions.append({"key": record.key, "phrases": phrases})
    metrics = phrase_recall(predicted, truths, KS)
    metrics |= _published(phrase_recall(published, truths, KS))
    # A phrase may be of several kinds, and counts for each of them.
    kinds_of = [own.split("/") for own in kinds]
    for kind in sorted({part for own in kinds_of for part in own if part}):
        of_kind = [number for number, own in enumerate(kinds_of) if kind in own]
        found_of_kind = phrase_recall(
            [published[number] for number in of_kind], [truths[number] for number in of_kind], KS
        )
        metrics |= {f"{kind}/{name}": v for name, v in _published(found_of_kind).items()}
    return Measured(metrics, predictions)


def _published(numbers: dict[str, float]) -> dict[str, float]:
    return {f"published_{name}": value for name, value in numbers.items()}


def _of_phrase(found: FoundBoxes, label: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes and scores of one phrase by falling score, of equal ones by falling corners."""
    chosen = found.label_indices == label
    boxes, scores = found.boxes_xyxy[chosen].cpu().numpy(), found.scores[chosen].cpu().numpy()
    # The last key of lexsort counts first.
    order = np.lexsort((*(-boxes[:, side] for side in (3, 2, 1, 0)), -scores))
    return boxes[order], scores[order]


def _needing_boxes(records: RecordSet) -> list[Record]:
    """List the records.

    Raises:
        ValueError: for one without boxes or labels, by name.
    """
    asked = [records[i] for i in range(len(records))]
    for record in asked:
        if not record.boxes_xyxy or not record.label_spans:
            raise ValueError(f"record {record.key!r} has no boxes or no label_spans to measure by")
    return asked


def _ground(
    subject: Subject, asked: list[Record], published: Mapping[str, Any]
) -> Iterator[tuple[Record, Grounded]]:
    """Find the boxes of each record's labels in its text, in order."""
    network = subject.detector
    results: dict[int, Grounded] = {}
    for batch, places in same_sized(subject, asked):
        shown = [asked[place] for place in places]
        output = network.predict(subject.encode_pair(batch, shown, batch.token_ids))
        tokens = [label_tokens(subject, record.text, record.label_spans) for record in shown]
        sizes = batch.image_sizes, batch.original_sizes
        own = ground_phrases(output, tokens, *sizes, boxes_per_phrase=BOXES_PER_PHRASE)
        all_found = detect_boxes(output, tokens, *sizes, **published)
        for place, best, found, size, original in zip(places, own, all_found, *sizes, strict=True):
            results[place] = Grounded(best, _inclusive(found, size, original))
    for place, record in enumerate(asked):
        yield record, results[place]


def _inclusive(found: FoundBoxes, size: Tensor, original: Tensor) -> FoundBoxes:
    """Write boxes with their last pixel as the right and lower corner, scaled as published.

    Args:
        found: half-open boxes of the original picture.
        size: (height, width) of the picture that the model saw.
        original: (height, width).
    """
    height, width = (original / size).tolist()
    pixel = found.boxes_xyxy.new_tensor([0.0, 0.0, width, height])
    return found._replace(boxes_xyxy=found.boxes_xyxy - pixel)


def same_sized(subject: Subject, asked: list[Record]) -> Iterator[tuple[Any, list[int]]]:
    """Give batches of pictures of one padded size with the places of their records.

    The model sees the padding, so that a picture padded to the size of another one would be judged
    by its neighbours in the batch.

    Raises:
        ValueError: for a box that its own picture does not hold, naming record, box and size.
    """
    # Boxes go along to be checked against their pictures; what no span names is then left out.
    stripped = [
        dataclasses.replace(record, boxes_xyxy=boxes, char_spans=((),) * len(boxes), box_labels=())
        for record in asked
        for boxes in [record.boxes_xyxy if subject.own_pictures else ()]
    ]
    divisor = subject.network.config.swin.patch_size * 8
    at = 0
    for batch, _ in subject.batches(stripped, "grounding"):
        padded = -(-batch.image_sizes // divisor) * divisor
        for height, width in torch.unique(padded, dim=0).tolist():
            rows = (padded == torch.tensor([height, width], device=padded.device)).all(1)
            chosen = rows.nonzero()[:, 0]
            yield _rows(batch, chosen, height, width), [at + row for row in chosen.tolist()]
        at += len(batch)


def _rows(batch: Any, rows: Tensor, height: int, width: int) -> Any:
    """Some samples of a batch without boxes, their pictures cut to (height, width)."""
    return dataclasses.replace(
        batch,
        keys=tuple(batch.keys[row] for row in rows.tolist()),
        images=batch.images[rows][..., :height, :width],
        image_sizes=batch.image_sizes[rows],
        original_sizes=batch.original_sizes[rows],
        token_ids=batch.token_ids[rows],
        text_mask=batch.text_mask[rows],
        boxes_per_image=batch.boxes_per_image[rows],
    )


def label_tokens(subject: Subject, text: str, spans: Sequence[Any]) -> list[list[int]]:
    """Find the tokens of each label; none for one behind the last token that the model reads."""
    _, offsets = subject.tokenizer.encode(text, max_tokens=subject.network.config.max_tokens)
    return Prompt(text, ("",) * len(spans), tuple(spans)).token_map(offsets)
