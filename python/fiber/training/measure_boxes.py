"""Measurements of the fine model: boxes of expressions, phrases and classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fiber.data.prompts import Prompt, class_prompts
from fiber.data.records import Record, RecordSet
from fiber.data.sources import label_boxes
from fiber.metrics.detection import ScoredBoxes, TrueBoxes, average_precision
from fiber.metrics.grounding import phrase_recall, referring_accuracy
from fiber.postprocess import FoundBoxes, detect_boxes, ground_phrases, join_chunks
from fiber.training.measure import Measured, Subject, entry_id, with_groups

#: Boxes of each phrase that are looked at, as recall at 10 needs them.
BOXES_PER_PHRASE = 10


def refcoco(subject: Subject, records: RecordSet) -> Measured:
    """Find the one thing that each expression means."""
    asked = _needing_boxes(records)
    predicted, predictions = [], []
    for record, found in _ground(subject, asked, boxes_per_phrase=1):
        boxes = found.boxes_xyxy[found.label_indices == 0].cpu().numpy()
        predicted.append(boxes)
        predictions.append(
            {
                "key": record.key,
                "box_xyxy": boxes[0].tolist() if len(boxes) else None,
                "score": float(found.scores[0]) if len(boxes) else 0.0,
            }
        )
    truths = np.array([record.boxes_xyxy[0] for record in asked])
    groups = [record.group for record in asked]
    return Measured(with_groups(referring_accuracy, groups, predicted, truths), predictions)


def flickr(subject: Subject, records: RecordSet) -> Measured:
    """Find the boxes of every phrase of a caption; phrases without a true box do not count."""
    asked = _needing_boxes(records)
    predicted, truths, predictions = [], [], []
    for record, found in _ground(subject, asked, boxes_per_phrase=BOXES_PER_PHRASE):
        named = label_boxes(record)
        boxes, labels = found.boxes_xyxy.cpu().numpy(), found.label_indices.cpu().numpy()
        scores = found.scores.cpu().numpy()
        for label, own in enumerate(named):
            if own:
                predicted.append(boxes[labels == label])
                truths.append(np.array([record.boxes_xyxy[box] for box in own]))
        predictions.append(
            {
                "key": record.key,
                "phrases": [
                    {
                        "phrase": phrase,
                        "boxes_xyxy": boxes[labels == label].tolist(),
                        "scores": scores[labels == label].tolist(),
                    }
                    for label, phrase in enumerate(record.labels)
                ],
            }
        )
    return Measured(phrase_recall(predicted, truths), predictions)


def coco(subject: Subject, records: RecordSet) -> Measured:
    """Detect classes; all classes of the records are asked for in every picture.

    The prediction file is COCO's result format. Its category ids are the places of the names in the
    records' labels, from 1, which are the ids of a file that counts its categories from 1.
    """
    asked = [records[i] for i in range(len(records))]
    names = asked[0].labels
    if any(record.labels != names for record in asked):
        raise ValueError("detection needs the same labels (class names) in every record")
    network, config = subject.detector, subject.network.config
    prompts = class_prompts(names, subject.tokenizer, config.max_tokens)
    tokens = [_tokens(subject, prompt.text, prompt.spans) for prompt in prompts]
    found: list[ScoredBoxes] = [ScoredBoxes([], [], [])] * len(asked)
    predictions: list[dict[str, Any]] = []
    for batch, places in _pictures(subject, asked):
        prefix = network.backbone.image_prefix(batch.images)
        chunks = []
        for prompt, token_map in zip(prompts, tokens, strict=True):
            ids, mask = subject.texts([prompt.text])
            count = len(batch.images)
            ids, mask = ids.expand(count, -1), mask.expand(count, -1)
            features = network.backbone.fuse(prefix, network.backbone.text_prefix(ids, mask), mask)
            chunks.append(
                detect_boxes(
                    network.predict(features),
                    [token_map] * count,
                    batch.image_sizes,
                    batch.original_sizes,
                )
            )
        firsts = [prompt.first_label for prompt in prompts]
        for row, place in enumerate(places):
            joined = join_chunks([chunk[row] for chunk in chunks], firsts, max_detections=100)
            boxes, scores = joined.boxes_xyxy.cpu().numpy(), joined.scores.cpu().numpy()
            labels = joined.label_indices.tolist()
            found[place] = ScoredBoxes(boxes, scores, labels)
            predictions += [
                {
                    "image_id": entry_id(asked[place].key),
                    "category_id": label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": score,
                }
                for (x0, y0, x1, y1), score, label in zip(
                    boxes.tolist(), scores.tolist(), labels, strict=True
                )
            ]
    truths = [TrueBoxes(record.boxes_xyxy, record.box_labels) for record in asked]
    numbers = average_precision(found, truths)
    # Numbers of a size that no true box has are left out; without any true box `ap` is NaN.
    return Measured(
        {name: value for name, value in numbers.items() if name == "ap" or value == value},
        predictions,
    )


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
    subject: Subject, asked: list[Record], *, boxes_per_phrase: int
) -> Iterator[tuple[Record, FoundBoxes]]:
    """Find the boxes of each record's labels in its text, in order."""
    network = subject.detector
    results: dict[int, FoundBoxes] = {}
    for batch, places in _pictures(subject, asked):
        shown = [asked[place] for place in places]
        found = ground_phrases(
            network.predict(subject.encode_pair(batch, shown, batch.token_ids)),
            [_tokens(subject, record.text, record.label_spans) for record in shown],
            batch.image_sizes,
            batch.original_sizes,
            boxes_per_phrase=boxes_per_phrase,
        )
        results |= zip(places, found, strict=True)
    for place, record in enumerate(asked):
        yield record, results[place]


def _pictures(subject: Subject, asked: list[Record]) -> Iterator[tuple[Any, list[int]]]:
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


def _tokens(subject: Subject, text: str, spans: Sequence[Any]) -> list[list[int]]:
    """Find the tokens of each label; none for one behind the last token that the model reads."""
    _, offsets = subject.tokenizer.encode(text, max_tokens=subject.network.config.max_tokens)
    return Prompt(text, ("",) * len(spans), tuple(spans)).token_map(offsets)
