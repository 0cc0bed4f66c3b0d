"""Boxes from raw predictions: label scores, NMS and rescaling to the original image.

Boxes are xyxy in half-open pixel coordinates (`fiber.ops.boxes`). NMS and clipping are equivalent
to the published ones on inclusive boxes. Sizes are (height, width) in pixels: `image_sizes` are
those of the model input without padding, and boxes are rescaled to `original_sizes`.

Boxes are tensors if the outputs are those of a network, and arrays of numpy if they are those of
exported graphs (`fiber.ops.arrays`).

Shapes: B images, A anchors over all levels, L text tokens, K labels per image, n boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from fiber.models.features import DetectorOutput
from fiber.ops.arrays import functions_of
from fiber.ops.boxes import clip_to_image, decode_deltas
from fiber.ops.nms import nms

if TYPE_CHECKING:
    from torch import Tensor

#: Token indices of each label for one image.
TokenMap = Sequence[Sequence[int]]
#: (height, width) of each image in pixels: a (B, 2) tensor or pairs.
Sizes: TypeAlias = "Tensor | np.ndarray | Sequence[Sequence[int]]"
#: Number of locations to decode per requested box of a phrase, before NMS.
PLACES_PER_BOX = 50


class FoundBoxes(NamedTuple):
    """Boxes in one image, best first, on the model's device."""

    #: (n, 4) float32, half-open pixel coordinates in the original image.
    boxes_xyxy: Tensor
    #: (n,) float32 in [0, 1].
    scores: Tensor
    #: (n,) int64, index into the image's labels.
    label_indices: Tensor

    def copied_to_cpu(self) -> FoundBoxes:
        """Return a copy on the CPU, without the memory of the tensors that these are views of."""
        f: Any = functions_of(self.scores)
        return FoundBoxes(*(f.copy(f.cpu(part)) for part in self))


def detect_boxes(
    output: DetectorOutput,
    label_token_maps: Sequence[TokenMap],
    image_sizes: Sizes,
    original_sizes: Sizes,
    *,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.6,
    max_detections: int | None = 100,
    candidates_per_level: int = 1000,
    aggregate: Literal["mean", "max"] = "mean",
) -> list[FoundBoxes]:
    """Detect boxes for all labels. The defaults are the published settings for detection.

    At each location, the score of a label is the mean probability of its tokens. Locations above
    the threshold are ranked by score times centerness; the returned score is the square root of
    that product.

    Args:
        output: output of the detector.
        label_token_maps: token indices of each label, for each image.
        image_sizes: B sizes without padding.
        original_sizes: B sizes to which boxes are rescaled.
        score_threshold: minimum label score, exclusive, before centerness is applied.
        nms_threshold: IoU above which the lower-scoring of two boxes of a label is removed.
        max_detections: maximum number of boxes per image. None means no limit.
        candidates_per_level: (location, label) pairs kept per level before NMS.
        aggregate: how to combine token probabilities, "mean" or "max".

    Raises:
        ValueError: if the number of token maps or sizes is not B, or a token index is out of range.
    """
    scores, centerness = _probabilities(output)
    f = functions_of(scores)
    lengths = [len(level) for level in output.anchors]
    found = []
    for image, sizes in _images(output, label_token_maps, image_sizes, original_sizes):
        token_map = label_token_maps[image]
        label_scores = _label_scores(scores[image], token_map, aggregate)
        ranks = label_scores * centerness[image, :, None]
        ranks = f.where(label_scores > score_threshold, ranks, -1.0)
        ends = np.cumsum(lengths).tolist()
        best = [
            _best(ranks[end - length : end], candidates_per_level)
            for length, end in zip(lengths, ends, strict=True)
        ]
        values = f.concat([value for value, _ in best])
        starts = [sum(lengths[:level]) * len(token_map) for level in range(len(lengths))]
        locations = f.concat(
            [index + start for (_, index), start in zip(best, starts, strict=True)]
        )
        # Indices into a flat (A, K) table; K may be 0.
        columns = max(len(token_map), 1)
        labels = locations % columns
        boxes = _boxes_at(output, image, locations // columns, sizes[0])
        kept = nms(boxes, values, labels, nms_threshold)[:max_detections]
        found.append(
            FoundBoxes(_to_original(boxes[kept], *sizes), f.sqrt(values[kept]), labels[kept])
        )
    return found


def ground_phrases(
    output: DetectorOutput,
    phrase_token_maps: Sequence[TokenMap],
    image_sizes: Sizes,
    original_sizes: Sizes,
    *,
    boxes_per_phrase: int = 1,
    score_threshold: float = 0.0,
    nms_threshold: float = 0.6,
) -> list[FoundBoxes]:
    """Find up to `boxes_per_phrase` boxes for each phrase, regardless of other phrases' scores.

    `score_threshold` is an inclusive minimum, applied after centerness; other arguments and errors
    are as in `detect_boxes`. Boxes are grouped by phrase, best first in each group. A phrase
    without tokens (truncated text) has no boxes.
    """
    found = grounded_locations(
        output,
        phrase_token_maps,
        image_sizes,
        original_sizes,
        boxes_per_phrase=boxes_per_phrase,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
    )
    return [boxes for boxes, _ in found]


def grounded_locations(
    output: DetectorOutput,
    phrase_token_maps: Sequence[TokenMap],
    image_sizes: Sizes,
    original_sizes: Sizes,
    *,
    boxes_per_phrase: int,
    score_threshold: float,
    nms_threshold: float,
) -> list[tuple[FoundBoxes, Tensor]]:
    """Return the boxes of `ground_phrases`, and the (n,) index of the location of each."""
    scores, centerness = _probabilities(output)
    f = functions_of(scores)
    locations_wanted = 1 if boxes_per_phrase == 1 else PLACES_PER_BOX * boxes_per_phrase
    found = []
    for image, sizes in _images(output, phrase_token_maps, image_sizes, original_sizes):
        token_map = phrase_token_maps[image]
        ranks = _label_scores(scores[image], token_map, "mean") * centerness[image, :, None]
        if output.inside is not None:
            ranks = f.where(output.inside[image, :, None], ranks, -1.0)
        # (A, K) -> best locations of each phrase, (K, locations)
        values, locations = f.topk(ranks.T, min(locations_wanted, len(ranks)))
        labels = f.broadcast_to(f.arange(len(token_map), ranks)[:, None], tuple(locations.shape))
        named = f.moved(np.array([len(tokens) > 0 for tokens in token_map], bool), ranks)
        usable = (values >= 0) & (f.sqrt(values) >= score_threshold) & named[:, None]
        values, locations, labels = values[usable], locations[usable], labels[usable]
        boxes = _boxes_at(output, image, locations, sizes[0])
        kept = nms(boxes, values, labels, nms_threshold)
        # NMS returns the best first; a stable sort groups by phrase.
        kept = kept[f.argsort(labels[kept])]
        kept = kept[_index_in_group(labels[kept]) < boxes_per_phrase]
        own = FoundBoxes(_to_original(boxes[kept], *sizes), f.sqrt(values[kept]), labels[kept])
        found.append((own, locations[kept]))
    return found


def join_chunks(
    chunks: Sequence[FoundBoxes], first_labels: Sequence[int], *, max_detections: int | None = None
) -> FoundBoxes:
    """Merge the boxes that several prompts found in one image, best first.

    Args:
        chunks: boxes of each prompt, at least one.
        first_labels: index of each prompt's first label in the list of all labels.
        max_detections: maximum number of boxes. Default: all, as in the published code.
    """
    return join_in_order(chunks, first_labels, max_detections)[0]


def join_in_order(
    chunks: Sequence[FoundBoxes], first_labels: Sequence[int], max_detections: int | None
) -> tuple[FoundBoxes, Tensor]:
    """Merge boxes as `join_chunks`; also return their (n,) indices in all chunks, one by one."""
    f = functions_of(chunks[0].scores)
    joined = FoundBoxes(
        f.concat([chunk.boxes_xyxy for chunk in chunks]),
        f.concat([chunk.scores for chunk in chunks]),
        f.concat([c.label_indices + first for c, first in zip(chunks, first_labels, strict=True)]),
    )
    order = f.argsort(joined.scores, descending=True)[:max_detections]
    return FoundBoxes(*(part[order] for part in joined)), order


def _probabilities(output: DetectorOutput) -> tuple[Tensor, Tensor]:
    """Return token probabilities (B, A, L) and centerness (B, A) as float32."""
    f = functions_of(output.token_logits[0])
    tokens, centerness = (f.concat(e, 1) for e in (output.token_logits, output.centerness_logits))
    return f.sigmoid(f.float32(tokens)), f.sigmoid(f.float32(centerness))


def _images(
    output: DetectorOutput, token_maps: Sequence[TokenMap], image_sizes: Sizes, originals: Sizes
) -> list[tuple[int, tuple[tuple[int, int], tuple[int, int]]]]:
    """Check the inputs and return (index, (size in the tensor, original size)) of each image."""
    batch, length = output.text_mask.shape
    if not batch == len(token_maps) == len(image_sizes) == len(originals):
        raise ValueError(
            f"got {len(token_maps)} token maps, {len(image_sizes)} image sizes and"
            f" {len(originals)} original sizes; expected {batch} of each, the batch size"
        )
    for image, token_map in enumerate(token_maps):
        for label, tokens in enumerate(token_map):
            if any(not 0 <= token < length for token in tokens):
                raise ValueError(
                    f"image {image}: label {label} has token indices {list(tokens)};"
                    f" expected 0 to {length - 1}"
                )
    return list(enumerate(zip(_pairs(image_sizes), _pairs(originals), strict=True)))


def _pairs(sizes: Sizes) -> list[tuple[int, int]]:
    rows = sizes if isinstance(sizes, Sequence) else sizes.tolist()
    return [(int(height), int(width)) for height, width in rows]


def _label_scores(scores: Tensor, token_map: TokenMap, aggregate: str) -> Tensor:
    """Compute label scores (A, K) from token scores (A, L), with 0 for labels without tokens."""
    if aggregate not in ("mean", "max"):
        raise ValueError(f"aggregate: expected 'mean' or 'max', got {aggregate!r}")
    f = functions_of(scores)
    if aggregate == "max":
        columns = [
            f.largest(scores[:, list(tokens)], 1) if len(tokens) else f.zeros([len(scores)], scores)
            for tokens in token_map
        ]
        return f.stack(columns, 1) if columns else f.zeros([len(scores), 0], scores)
    mixing = np.zeros((scores.shape[1], len(token_map)), np.float32)
    for label, tokens in enumerate(token_map):
        mixing[list(tokens), label] = 1.0 / max(len(tokens), 1)
    return scores @ f.moved(mixing, scores)


def _best(ranks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` highest scores of a level and their flat indices, dropping negatives."""
    flat = ranks.flatten()
    values, indices = functions_of(flat).topk(flat, min(count, len(flat)))
    chosen = values >= 0
    return values[chosen], indices[chosen]


def _boxes_at(
    output: DetectorOutput, image: int, locations: Tensor, size: tuple[int, int]
) -> Tensor:
    """Decode the boxes at the given locations and clip them to the image without padding."""
    f = functions_of(locations)
    deltas = f.float32(f.concat([level[image] for level in output.box_deltas])[locations])
    return clip_to_image(decode_deltas(deltas, f.concat(output.anchors)[locations]), *size)


def _to_original(boxes: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Rescale boxes from the transformed to the original image."""
    height, width = original[0] / size[0], original[1] / size[1]
    f = functions_of(boxes)
    scaled = boxes * f.array([width, height, width, height], boxes)
    return f.minimum(scaled, f.array([original[1], original[0]] * 2, boxes))


def _index_in_group(groups: Tensor) -> Tensor:
    """Return the index of each element of a sorted array within its run of equal values."""
    f = functions_of(groups)
    return f.arange(len(groups), groups) - f.searchsorted(groups, groups)
