"""Evaluate grounding: boxes for referring expressions and phrases.

A single forward pass yields two sets of metrics. The default metrics keep the best boxes of each
phrase and use half-open boxes. The "published_..." metrics keep the 100 best detections over all
phrases of a text, compare boxes that exclude the last pixel on the right and at the bottom, and use
GIoU instead of IoU for expressions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiber.data.datasets.mdetr import label_boxes
from fiber.data.prompts.classes import Prompt
from fiber.data.record import Record
from fiber.evaluation.context import EvalContext, EvalResult
from fiber.inference.boxes import run_prompts
from fiber.inference.tensor_inputs import Inputs
from fiber.inference.text_feature_cache import TextPrefixes
from fiber.messages import shown
from fiber.metrics.grounding import phrase_recall, referring_accuracy
from fiber.metrics.groups import with_groups
from fiber.models.abilities import FindsBoxes
from fiber.models.features import DetectorOutput
from fiber.postprocess import FoundBoxes, detect_boxes, ground_phrases

ResultT = TypeVar("ResultT")

#: Number of boxes kept per phrase, for recall at 10.
BOXES_PER_PHRASE = 10
#: Name of tasks with boxes in messages.
ASKED = "an evaluation of boxes"
#: Values of k for recall at k and accuracy at k.
KS = (1, 5, 10)
#: Published post-processing: score threshold, and number of candidates per pyramid level.
PUBLISHED_REFERRING: Mapping[str, Any] = {"score_threshold": 0.0, "candidates_per_level": 3000}
PUBLISHED_PHRASES: Mapping[str, Any] = {"score_threshold": 0.05, "candidates_per_level": 1000}


def refcoco(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate predicted boxes for referring expressions."""
    predicted, published, predictions = [], [], []
    for record, found, found_published in _ground(context, records, PUBLISHED_REFERRING):
        boxes, scores = _of_phrase(found, 0)
        predicted.append(boxes)
        published.append(_of_phrase(found_published, 0)[0])
        predictions.append(
            {
                "key": record.key,
                "box_xyxy": boxes[0].tolist() if len(boxes) else None,
                "score": float(scores[0]) if len(boxes) else 0.0,
            }
        )
    truths = np.array([record.boxes_xyxy[0] for record in records])
    groups = [record.group for record in records]
    metrics = with_groups(referring_accuracy, groups, predicted, truths, ks=KS)
    as_published = referring_accuracy(published, truths, KS)
    metrics |= {f"published_accuracy_at_{k}": as_published[f"giou_accuracy_at_{k}"] for k in KS}
    return EvalResult(metrics, predictions)


def flickr(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate predicted boxes for caption phrases, ignoring phrases without a ground-truth box."""
    predicted, published, truths, kinds = [], [], [], []
    predictions: list[dict[str, Any]] = []
    for record, found, found_published in _ground(context, records, PUBLISHED_PHRASES):
        phrases = []
        for label, own in enumerate(label_boxes(record)):
            boxes, scores = _of_phrase(found, label)
            phrases.append(
                {
                    "phrase": record.labels[label],
                    "boxes_xyxy": boxes.tolist(),
                    "scores": scores.tolist(),
                }
            )
            if own:
                predicted.append(boxes)
                published.append(_of_phrase(found_published, label)[0])
                truths.append(np.array([record.boxes_xyxy[box] for box in own]))
                kinds.append(record.label_groups[label] if record.label_groups else "")
        predictions.append({"key": record.key, "phrases": phrases})
    metrics = phrase_recall(predicted, truths, KS)
    recall = phrase_recall(published, truths, KS)
    metrics |= {f"published_{name}": value for name, value in recall.items()}
    # A phrase with several kinds counts for each of them.
    kinds_of = [own.split("/") for own in kinds]
    for kind in sorted({part for own in kinds_of for part in own if part}):
        rows = [row for row, own in enumerate(kinds_of) if kind in own]
        recall = phrase_recall([published[r] for r in rows], [truths[r] for r in rows], KS)
        metrics |= {f"{kind}/published_{name}": value for name, value in recall.items()}
    return EvalResult(metrics, predictions)


def _of_phrase(found: FoundBoxes, label: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a phrase's boxes and scores, sorted by descending score, then by coordinates."""
    chosen = found.label_indices == label
    boxes, scores = found.boxes_xyxy[chosen].cpu().numpy(), found.scores[chosen].cpu().numpy()
    # The last key of lexsort is the primary one.
    order = np.lexsort((*(-boxes[:, side] for side in (3, 2, 1, 0)), -scores))
    return boxes[order], scores[order]


def _ground(
    context: EvalContext, records: list[Record], published: Mapping[str, Any]
) -> Iterator[tuple[Record, FoundBoxes, FoundBoxes]]:
    """Yield (record, best half-open boxes per label, published-style boxes), in record order.

    Raises:
        ValueError: if a record lacks boxes or labels; the message names its key.
    """
    for record in records:
        if not record.boxes_xyxy or not record.label_spans:
            raise ValueError(
                f"record {shown(record.key)} lacks boxes or label_spans; expected both"
            )
    network = context.able(FindsBoxes, ASKED)
    text_prefixes = encoded_prompts(context, network)
    results: dict[int, tuple[FoundBoxes, FoundBoxes]] = {}

    def select(output: DetectorOutput, maps: Any, *sizes: Tensor) -> Iterator[Any]:
        own = ground_phrases(output, maps, *sizes, boxes_per_phrase=BOXES_PER_PHRASE)
        all_found = detect_boxes(output, maps, *sizes, **published)
        for best, found, size, original in zip(own, all_found, *sizes, strict=True):
            yield best.copied_to_cpu(), _inclusive(found, size, original).copied_to_cpu()

    def ground(batch: Any, places: list[int]) -> dict[int, tuple[FoundBoxes, FoundBoxes]]:
        shown = [records[place] for place in places]
        prefix = context.image_prefix(batch.images, shown)
        pairs = [(row, _prompt(record)) for row, record in enumerate(shown)]
        found = run_prompts(network, text_prefixes, batch, prefix, [pairs], select)
        return dict(zip(places, (boxes for _, boxes in found), strict=True))

    for found in run_same_sized(context, records, ground):
        results |= found
    for place, record in enumerate(records):
        yield record, *results[place]


def encoded_prompts(
    context: EvalContext, network: FindsBoxes, *, keep_all: bool = False
) -> TextPrefixes:
    """Return an empty cache for the prompts of an evaluation."""
    inputs = Inputs(context.network.config, context.tokenizer, context.device)
    return TextPrefixes(network, inputs, keep_all=keep_all)


def _prompt(record: Record) -> Prompt:
    # In records that users create, spans may be lists.
    spans = tuple(tuple((start, end) for start, end in own) for own in record.label_spans)
    return Prompt(record.text, record.labels, spans)


def _inclusive(found: FoundBoxes, size: Tensor, original: Tensor) -> FoundBoxes:
    """Convert half-open boxes to published corners, which exclude the last input pixel.

    `size` and `original` are (height, width) of the model input and of the original image.
    """
    height, width = (original / size).tolist()
    pixel = found.boxes_xyxy.new_tensor([0.0, 0.0, width, height])
    return found._replace(boxes_xyxy=found.boxes_xyxy - pixel)


def run_same_sized(
    context: EvalContext,
    records: list[Record],
    function: Callable[[Any, list[int]], ResultT],
) -> Iterator[ResultT]:
    """Yield the results of batches of images with the same padded size.

    The model sees the padding, so padding images to a common size would make predictions depend on
    the batch. See `EvalContext.run_batches`; `function` has the batch and the indices of its
    records as arguments.

    Raises:
        ValueError: if a box is outside its image. The message gives the record, the box and the
            image size.
    """
    # The loader checks boxes against their images, then drops the boxes, since they have no span.
    stripped = [
        dataclasses.replace(
            record, boxes_xyxy=boxes, char_spans=((),) * len(boxes), box_labels=(), box_masks=()
        )
        for record in records
        for boxes in [() if context.permute_images else record.boxes_xyxy]
    ]
    divisor = context.able(FindsBoxes, ASKED).size_divisor

    def run(batch: Any, shown: list[Record], at: int) -> list[ResultT]:
        parts = _same_sized(batch, divisor)
        return [function(part, [at + row for row in rows]) for part, rows in parts]

    return chain.from_iterable(context.run_batches(stripped, "grounding", run))


def _same_sized(batch: Any, divisor: int) -> Iterator[tuple[Any, list[int]]]:
    """Split a batch by the size of images, padded to a multiple of `divisor`; yield rows, too."""
    padded = -(-batch.image_sizes // divisor) * divisor
    for height, width in torch.unique(padded, dim=0).tolist():
        rows = (padded == torch.tensor([height, width], device=padded.device)).all(1)
        chosen = rows.nonzero()[:, 0]
        part = dataclasses.replace(
            batch,
            keys=tuple(batch.keys[row] for row in chosen.tolist()),
            images=batch.images[chosen][..., :height, :width],
            image_sizes=batch.image_sizes[chosen],
            original_sizes=batch.original_sizes[chosen],
            token_ids=batch.token_ids[chosen],
            text_mask=batch.text_mask[chosen],
            boxes_per_image=batch.boxes_per_image[chosen],
        )
        yield part, chosen.tolist()
