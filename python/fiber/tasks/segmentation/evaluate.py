"""Evaluate masks: panoptic segments, semantic maps, instances, and masks of phrases.

Each image is computed alone, so results do not depend on its batch. Masks are compared at the size
of the stored image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiber.data.record import Record
from fiber.evaluation.context import EvalContext, EvalResult, entry_id
from fiber.inference.boxes import PassCounts, find_boxes
from fiber.inference.masks.class_vectors import encode_classes
from fiber.inference.masks.reading import MaskImage, read_each
from fiber.inference.prompts import grounding_prompts
from fiber.inference.tensor_inputs import Inputs
from fiber.inference.text_feature_cache import TextPrefixes
from fiber.messages import shown, shown_names
from fiber.metrics.mask_ap import ScoredMasks, TrueMasks, encode_masks, mask_average_precision
from fiber.metrics.panoptic import FoundSegments, PanopticCounts, TrueSegments
from fiber.metrics.regions import SemanticCounts, phrase_areas, phrase_mask_metrics
from fiber.models.abilities import FindsMasks
from fiber.models.mask_abilities import SegmentsMasks
from fiber.postprocess.masks import (
    MaskSizes,
    final_instances,
    final_masks,
    final_panoptic,
    final_semantic,
)
from fiber.postprocess.thresholds import Thresholds
from fiber.tasks.segmentation.truth import TrueImage, true_image

ResultT = TypeVar("ResultT")

#: Name of the evaluations in messages.
ASKED = "an evaluation of masks"
#: Group of a class that has no instances (`Record.label_groups`).
STUFF = "stuff"
#: Class of pixels that are not evaluated.
_IGNORED = -1


def panoptic(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate panoptic segments by PQ, SQ and RQ, of all classes, things and stuff.

    Predictions list the segments of each image in COCO's panoptic format, with their masks as run
    lengths in place of a PNG.
    """
    names, is_thing, ids = _classes(records)
    network, vectors = _ready(context, names)
    counts, predictions = PanopticCounts(len(names)), []

    def segment(record: Record, image: MaskImage) -> tuple[PanopticCounts, dict[str, Any]]:
        found = final_panoptic(*_class_masks(network, image, vectors), is_thing)
        truth, own = true_image(record, image.sizes.wanted), PanopticCounts(len(names))
        map_ids = found.ids.cpu().numpy()
        labels = {each.id: each.label for each in found.segments}
        own.add(FoundSegments(ids=map_ids, labels=labels), _true_segments(truth))
        rles = (
            encode_masks(np.stack([map_ids == each.id for each in found.segments]))
            if labels
            else []
        )
        return own, {
            "image_id": entry_id(record.key),
            "segments_info": [
                {
                    "id": each.id,
                    "category_id": ids[each.label],
                    "isthing": int(each.is_thing),
                    "score": each.score,
                    "segmentation": _as_text(rle),
                }
                for each, rle in zip(found.segments, rles, strict=True)
            ],
        }

    for own, prediction in _each(context, records, "panoptic", network, segment):
        counts.join(own)
        predictions.append(prediction)
    metrics = counts.metrics(is_thing)
    # A group without a segment has no metrics.
    return EvalResult(
        {name: value for name, value in metrics.items() if name == "pq" or value == value},
        predictions,
    )


def semantic(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate the class of each pixel by mean IoU, in the usual and in the published form.

    See `fiber.metrics.regions.SemanticCounts`. Predictions have a mask for each class of an image,
    in COCO's result format.
    """
    names, _, ids = _classes(records)
    network, vectors = _ready(context, names)
    counts, predictions = SemanticCounts(len(names)), []

    def segment(record: Record, image: MaskImage) -> tuple[SemanticCounts, list[dict[str, Any]]]:
        scores = final_semantic(*_class_masks(network, image, vectors))
        found = scores.argmax(0).cpu().numpy()
        own = SemanticCounts(len(names))
        own.add(found, _true_classes(true_image(record, image.sizes.wanted)), _IGNORED)
        present = np.unique(found).tolist()
        rles = encode_masks(np.stack([found == label for label in present]))
        return own, [
            {
                "image_id": entry_id(record.key),
                "category_id": ids[label],
                "segmentation": _as_text(rle),
            }
            for label, rle in zip(present, rles, strict=True)
        ]

    for own, entries in _each(context, records, "semantic", network, segment):
        counts.join(own)
        predictions += entries
    return EvalResult(counts.metrics(), predictions)


def instance(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate instances of things by COCO AP of their masks.

    Predictions are in COCO's result format, with the category ids of the annotation file.
    """
    names, is_thing, ids = _classes(records)
    network, vectors = _ready(context, names)
    found: list[ScoredMasks] = []
    truths: list[TrueMasks] = []
    predictions: list[dict[str, Any]] = []

    def segment(record: Record, image: MaskImage) -> tuple[ScoredMasks, TrueMasks]:
        own = final_instances(*_class_masks(network, image, vectors), is_thing)
        truth = true_image(record, image.sizes.wanted)
        things = np.array([is_thing[label] for label in truth.labels], bool)
        true = TrueMasks(
            encode_masks(truth.masks[things]), truth.labels[things].tolist(), truth.crowd[things]
        )
        rles = encode_masks(own.masks.cpu().numpy())
        return ScoredMasks(rles, own.scores.tolist(), own.labels.tolist()), true

    results = _each(context, records, "instance", network, segment)
    for record, (own, true) in zip(records, results, strict=True):
        found.append(own)
        truths.append(true)
        rows = zip(own.masks, own.scores, own.labels, strict=True)  # type: ignore[arg-type]
        predictions += [
            {
                "image_id": entry_id(record.key),
                "category_id": ids[label],
                "segmentation": _as_text(rle),
                "score": score,
            }
            for rle, score, label in rows
        ]
    metrics = mask_average_precision(found, truths)
    # An area range without an object has no metrics.
    return EvalResult(
        {name: value for name, value in metrics.items() if name == "ap" or value == value},
        predictions,
    )


def refseg(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate the mask of each phrase by IoU; all phrases of an image are asked together.

    A detector is asked about each phrase alone: the mask is that of its best box. Predictions have
    the mask of each phrase.

    Raises:
        ValueError: if a record has no phrases; the message names it.
    """
    for record in records:
        if not record.phrases:
            raise ValueError(f"record {shown(record.key)} has no phrases; expected at least one")
    if "grounding_mask" in context.network.config.heads:
        return _refseg_of_boxes(context, records)
    network = context.able(SegmentsMasks, ASKED, "mask")
    inputs = _inputs(context)
    areas: list[tuple[int, int]] = []
    predictions: list[dict[str, Any]] = []

    def find(
        record: Record, image: MaskImage
    ) -> tuple[list[tuple[int, int]], list[dict[str, Any]]]:
        phrases = record.phrases
        texts = inputs.texts(phrases)
        scores, logits = network.find_phrases(image.memory, texts.token_ids, texts.text_mask)
        masks = (final_masks(logits[0].float(), *image.sizes) > 0).cpu().numpy()
        truth = true_image(record, image.sizes.wanted)
        own = [phrase_areas(mask, real) for mask, real in zip(masks, truth.phrases, strict=True)]
        rows = zip(phrases, encode_masks(masks), scores[0].tolist(), strict=True)
        return own, [
            {"key": record.key, "phrase": phrase, "segmentation": _as_text(rle), "score": score}
            for phrase, rle, score in rows
        ]

    for own, entries in _each(context, records, "phrases", network, find):
        areas += own
        predictions += entries
    return EvalResult(phrase_mask_metrics(areas), predictions)


def _refseg_of_boxes(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate the masks of the best boxes of phrases, as `refseg`."""
    network = context.able(FindsMasks, ASKED, "grounding_mask")
    inputs = _inputs(context)
    prefixes = TextPrefixes(network, inputs)
    limits = Thresholds(score=0.0, nms=1.0, max_detections=None, boxes_per_phrase=1)

    def results() -> Iterator[tuple[list[tuple[int, int]], list[dict[str, Any]]]]:
        for record in records[context.processes.own]:
            prompts = grounding_prompts(record.phrases, None, None, 1, inputs)
            given = (network, inputs, prefixes, record.images[:1], prompts, limits, PassCounts())
            (found,) = find_boxes(*given, network)
            assert found.masks is not None
            masks = np.zeros((len(record.phrases), *found.image_size), bool)
            scores = np.zeros(len(record.phrases))
            # A phrase that was cut off has no box, and an empty mask.
            masks[found.indices], scores[found.indices] = found.masks, found.scores
            truth = true_image(record, found.image_size)
            own = [phrase_areas(*pair) for pair in zip(masks, truth.phrases, strict=True)]
            rows = zip(record.phrases, encode_masks(masks), scores.tolist(), strict=True)
            yield (
                own,
                [
                    {
                        "key": record.key,
                        "phrase": phrase,
                        "segmentation": _as_text(rle),
                        "score": score,
                    }
                    for phrase, rle, score in rows
                ],
            )

    areas: list[tuple[int, int]] = []
    predictions: list[dict[str, Any]] = []
    for own, entries in context.processes.in_order(results()):
        areas += own
        predictions += entries
    return EvalResult(phrase_mask_metrics(areas), predictions)


def _classes(records: list[Record]) -> tuple[tuple[str, ...], list[bool], Sequence[int]]:
    """Return the names of the classes, which of them have instances, and their category ids.

    Raises:
        ValueError: if records have no classes, or not all the same.
    """
    first = records[0]
    for record in records:
        if record.labels != first.labels or not record.labels:
            raise ValueError(
                f"records {shown(first.key)} and {shown(record.key)} have different labels, or"
                " none; expected the same class names in every record"
            )
    groups = first.label_groups or ("",) * len(first.labels)
    ids = first.label_ids or range(1, len(first.labels) + 1)
    return first.labels, [group != STUFF for group in groups], ids


def _inputs(context: EvalContext) -> Inputs:
    return Inputs(context.network.config, context.tokenizer, context.device, context.limits)


def _ready(context: EvalContext, names: Sequence[str]) -> tuple[SegmentsMasks, Tensor]:
    """Return the network, and the vectors of the classes and of the background: (K + 1, D).

    Names are those of `context.classes`, if given.

    Raises:
        ValueError: if their number is wrong, or one has words around the name, or there is a number
            of classes for a prompt, which such networks do not have.
    """
    network = context.able(SegmentsMasks, ASKED, "mask")
    if context.classes_per_prompt is not None:
        raise ValueError(
            f"classes_per_prompt is {context.classes_per_prompt}; expected None: each class has"
            " texts of its own"
        )
    if context.classes is not None:
        given = [name for name in context.classes if isinstance(name, str)]
        if len(given) != len(names) or len(context.classes) != len(names):
            raise ValueError(
                f"got {len(given)} classes that are names, expected {len(names)}, one for each"
                f" class of the data: {shown_names(names)}"
            )
        names = given
    vectors = encode_classes(network, _inputs(context), names)
    return network, torch.from_numpy(vectors).to(context.device)


def _each(
    context: EvalContext,
    records: list[Record],
    kind: str,
    network: SegmentsMasks,
    function: Callable[[Record, MaskImage], ResultT],
) -> Iterator[ResultT]:
    """Yield the result of each record, in order, of those of all processes."""
    inputs = _inputs(context)

    def results() -> Iterator[ResultT]:
        for record in records[context.processes.own]:
            for image in read_each(network, inputs, [record.images[0]], kind):
                yield function(record, image)

    return context.processes.in_order(results())


def _class_masks(
    network: SegmentsMasks, image: MaskImage, vectors: Tensor
) -> tuple[Tensor, Tensor, MaskSizes]:
    """Return the (Q, h, w) masks of an image, (Q, K + 1) class logits, and its sizes."""
    class_logits, mask_logits = network.class_masks(image.memory, vectors)
    return mask_logits[0], class_logits[0], image.sizes


def _true_segments(truth: TrueImage) -> TrueSegments:
    """Number the true masks from 1; a later one has the pixels of an overlap."""
    ids = np.zeros(truth.size, np.int32)
    for number, mask in enumerate(truth.masks, 1):
        ids[mask] = number
    present = set(np.unique(ids).tolist())
    labels = {n: int(label) for n, label in enumerate(truth.labels, 1) if n in present}
    crowd = frozenset(n for n, is_crowd in enumerate(truth.crowd, 1) if is_crowd)
    return TrueSegments(ids=ids, labels=labels, crowd=crowd)


def _true_classes(truth: TrueImage) -> NDArray[np.int64]:
    """Return the true class of each pixel; those without a mask are not evaluated."""
    classes = np.full(truth.size, _IGNORED, np.int64)
    for label, mask in zip(truth.labels, truth.masks, strict=True):
        classes[mask] = label
    return classes


def _as_text(rle: dict[str, Any]) -> dict[str, Any]:
    """Return a mask in run lengths as JSON."""
    counts = rle["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in rle["size"]], "counts": text}
