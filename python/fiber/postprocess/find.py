"""From raw predictions to boxes: scores of labels, suppression, sizes of the original picture.

Boxes are half-open xyxy pixels, see `fiber.ops.boxes`; suppression and clipping are then the
published ones, which write the same boxes with inclusive corners.

Letters: B pictures, A anchors over all levels, L tokens, K labels of a picture, n boxes found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from fiber.models.fiber.detector import DetectorOutput
from fiber.ops.boxes import clip_to_image, decode_deltas

#: For each label of a picture, the indices of the tokens that name it.
TokenMap = Sequence[Sequence[int]]
#: (height, width) in pixels of each picture: (B, 2) or pairs.
Sizes = Tensor | Sequence[Sequence[int]]
#: Places of a phrase that are decoded for each box asked for, since many overlap.
PLACES_PER_BOX = 50


class FoundBoxes(NamedTuple):
    """Boxes of one picture, best first, on the model's device."""

    #: (n, 4) float32, half-open pixels of the original picture.
    boxes_xyxy: Tensor
    #: (n,) float32 in [0, 1].
    scores: Tensor
    #: (n,) int64, which label of the picture's list.
    label_indices: Tensor


def detect_boxes(
    output: DetectorOutput,
    label_token_maps: Sequence[TokenMap],
    image_sizes: Sizes,
    original_sizes: Sizes,
    *,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.6,
    max_detections: int = 100,
    candidates_per_level: int = 1000,
    aggregate: Literal["mean", "max"] = "mean",
) -> list[FoundBoxes]:
    """Find the boxes of every label; defaults as published for detection.

    A label's score at a location is the mean of its tokens' probabilities. Locations above the
    threshold are ranked by score times centerness, and that product's square root is the score
    that comes out.

    Args:
        output: of the detector.
        label_token_maps: for each picture, for each label, the indices of its tokens; pictures
            may have different texts.
        image_sizes: (height, width) inside the padded tensor.
        original_sizes: (height, width) of the picture that boxes are wanted for.
        score_threshold: a label's score must exceed it, before centerness is counted.
        nms_threshold: of two boxes of one label whose IoU exceeds it, the better one stays.
        max_detections: boxes kept of a picture.
        candidates_per_level: pairs of location and label kept of a level before suppression.
        aggregate: "mean" or "max" of the tokens' probabilities.

    Returns:
        For each picture its boxes, best first.

    Raises:
        ValueError: if the lists differ in length from the batch, or a token index lies outside
            the text.
    """
    scores, centerness = _probabilities(output)
    lengths = [len(level) for level in output.anchors]
    found = []
    for image, sizes in _pictures(output, label_token_maps, image_sizes, original_sizes):
        token_map = label_token_maps[image]
        label_scores = _label_scores(scores[image], token_map, aggregate)
        ranks = label_scores * centerness[image, :, None]
        ranks = torch.where(label_scores > score_threshold, ranks, -1.0)
        best = [_best(level, candidates_per_level) for level in ranks.split(lengths)]
        values = torch.cat([value for value, _ in best])
        starts = [sum(lengths[:level]) * len(token_map) for level in range(len(lengths))]
        places = torch.cat([place + start for (_, place), start in zip(best, starts, strict=True)])
        # Places count through a table (A, K), which may have no column.
        columns = max(len(token_map), 1)
        labels = places % columns
        boxes = _boxes_at(output, image, places // columns, sizes[0])
        kept = suppress(boxes, values, labels, nms_threshold)[:max_detections]
        found.append(
            FoundBoxes(_to_original(boxes[kept], *sizes), values[kept].sqrt(), labels[kept])
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
    """Find the best boxes of every phrase, whatever the other phrases score.

    Args:
        output: of the detector.
        phrase_token_maps: for each picture, for each phrase, the indices of its tokens.
        image_sizes: (height, width) inside the padded tensor.
        original_sizes: (height, width) of the picture that boxes are wanted for.
        boxes_per_phrase: boxes wanted of each phrase; fewer come out where the rest is suppressed
            or below the threshold.
        score_threshold: lowest score, centerness counted, in [0, 1].
        nms_threshold: as in `detect_boxes`.

    Returns:
        For each picture its boxes, phrase by phrase, the best of each first. A phrase without
        tokens (its text was cut) has none.

    Raises:
        ValueError: as `detect_boxes`.
    """
    scores, centerness = _probabilities(output)
    places_wanted = 1 if boxes_per_phrase == 1 else PLACES_PER_BOX * boxes_per_phrase
    found = []
    for image, sizes in _pictures(output, phrase_token_maps, image_sizes, original_sizes):
        token_map = phrase_token_maps[image]
        ranks = _label_scores(scores[image], token_map, "mean") * centerness[image, :, None]
        if output.inside is not None:
            ranks = ranks.masked_fill(~output.inside[image, :, None], -1.0)
        # (A, K) -> the best places of each phrase, (K, places)
        values, places = ranks.t().topk(min(places_wanted, len(ranks)), dim=1)
        labels = torch.arange(len(token_map), device=ranks.device)[:, None].expand_as(places)
        named = torch.tensor(
            [len(tokens) > 0 for tokens in token_map], dtype=torch.bool, device=ranks.device
        )
        usable = (values >= 0) & (values.sqrt() >= score_threshold) & named[:, None]
        values, places, labels = values[usable], places[usable], labels[usable]
        boxes = _boxes_at(output, image, places, sizes[0])
        kept = suppress(boxes, values, labels, nms_threshold)
        # Best first from the suppression; a stable sort then groups by phrase.
        kept = kept[labels[kept].argsort(stable=True)]
        kept = kept[_place_in_group(labels[kept]) < boxes_per_phrase]
        found.append(
            FoundBoxes(_to_original(boxes[kept], *sizes), values[kept].sqrt(), labels[kept])
        )
    return found


def join_chunks(
    chunks: Sequence[FoundBoxes], first_labels: Sequence[int], *, max_detections: int | None = None
) -> FoundBoxes:
    """Join what several prompts found in one picture, best first.

    Args:
        chunks: one for each prompt, at least one.
        first_labels: place of each prompt's first label in the whole list of labels.
        max_detections: boxes kept; default all, as published.
    """
    joined = FoundBoxes(
        torch.cat([chunk.boxes_xyxy for chunk in chunks]),
        torch.cat([chunk.scores for chunk in chunks]),
        torch.cat([c.label_indices + first for c, first in zip(chunks, first_labels, strict=True)]),
    )
    order = joined.scores.argsort(descending=True, stable=True)[:max_detections]
    return FoundBoxes(*(part[order] for part in joined))


def _probabilities(output: DetectorOutput) -> tuple[Tensor, Tensor]:
    """Token probabilities (B, A, L) and centerness (B, A), float32."""
    tokens = torch.cat(output.token_logits, dim=1).float().sigmoid()
    return tokens, torch.cat(output.centerness_logits, dim=1).float().sigmoid()


def _pictures(
    output: DetectorOutput, token_maps: Sequence[TokenMap], image_sizes: Sizes, originals: Sizes
) -> list[tuple[int, tuple[tuple[int, int], tuple[int, int]]]]:
    """Number every picture, with its size in the tensor and its original size."""
    batch, length = output.text_mask.shape
    if not batch == len(token_maps) == len(image_sizes) == len(originals):
        raise ValueError(
            f"{batch} pictures went through the model; got {len(token_maps)} token maps,"
            f" {len(image_sizes)} image sizes and {len(originals)} original sizes"
        )
    for image, token_map in enumerate(token_maps):
        for label, tokens in enumerate(token_map):
            if any(not 0 <= token < length for token in tokens):
                raise ValueError(
                    f"picture {image}: label {label} has tokens {list(tokens)};"
                    f" the text has {length}"
                )
    return list(enumerate(zip(_pairs(image_sizes), _pairs(originals), strict=True)))


def _pairs(sizes: Sizes) -> list[tuple[int, int]]:
    rows = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    return [(int(height), int(width)) for height, width in rows]


def _label_scores(scores: Tensor, token_map: TokenMap, aggregate: str) -> Tensor:
    """Scores (A, K) of labels from those of tokens (A, L); 0 for a label without tokens."""
    if aggregate not in ("mean", "max"):
        raise ValueError(f"aggregate: expected mean or max, got {aggregate!r}")
    if aggregate == "max":
        columns = [
            scores[:, list(tokens)].amax(1) if len(tokens) else scores.new_zeros(len(scores))
            for tokens in token_map
        ]
        return torch.stack(columns, 1) if columns else scores.new_zeros(len(scores), 0)
    mixing = torch.zeros(scores.shape[1], len(token_map))
    for label, tokens in enumerate(token_map):
        mixing[list(tokens), label] = 1.0 / max(len(tokens), 1)
    return scores @ mixing.to(scores.device)


def _best(ranks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best ranks of a level and their places in its (locations x labels) table."""
    flat = ranks.flatten()
    values, places = flat.topk(min(count, len(flat)))
    chosen = values >= 0
    return values[chosen], places[chosen]


def _boxes_at(output: DetectorOutput, image: int, places: Tensor, size: tuple[int, int]) -> Tensor:
    """Decode the boxes at some locations and clip them to the picture without its padding."""
    deltas = torch.cat([level[image] for level in output.box_deltas])[places].float()
    return clip_to_image(decode_deltas(deltas, torch.cat(output.anchors)[places]), *size)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Places of the boxes that stay, best first; labels do not suppress one another."""
    # torchvision moves each label's boxes to a place of its own; in float64 nothing is rounded.
    return batched_nms(boxes.double(), scores.double(), labels, threshold)


def _to_original(boxes: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Scale boxes of the transformed picture to the original one."""
    height, width = original[0] / size[0], original[1] / size[1]
    scaled = boxes * boxes.new_tensor([width, height, width, height])
    upper = boxes.new_tensor([original[1], original[0]] * 2)
    return torch.minimum(scaled, upper)


def _place_in_group(groups: Tensor) -> Tensor:
    """Count 0, 1, 2, ... inside each run of equal numbers."""
    order = torch.arange(len(groups), device=groups.device)
    _, counts = torch.unique_consecutive(groups, return_counts=True)
    starts = counts.cumsum(0) - counts
    return order - torch.repeat_interleave(starts, counts)
