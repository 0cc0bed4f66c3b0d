"""Post-process the eager detector's predictions to boxes, by level and class as published.

Boxes have inclusive corners, as published: a width is x1 - x0 + 1.

Letters: B images, A = H_l W_l anchors, L tokens, K classes, n boxes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import nms

from benches.eager_detector import Predictions, to_rows
from fiber.config import FiberConfig

#: Published bound of the log of a box's size over its anchor's.
MAX_LOG_SCALE = math.log(1000.0 / 16)


class Settings(NamedTuple):
    """How detections are chosen; defaults as published for detection."""

    score_threshold: float = 0.05
    candidates_per_level: int = 1000
    nms_threshold: float = 0.6
    max_detections: int = 100
    #: "mean" or "max" of the tokens' probabilities.
    aggregate: str = "mean"
    #: Classes that have a column; None: as many as the model's unused layer has.
    num_classes: int | None = None


class Found(NamedTuple):
    """Boxes of one image, in no order."""

    #: (n, 4) pixels, inclusive corners; (n,) scores; (n,) labels from 1.
    boxes: Tensor
    scores: Tensor
    labels: Tensor


def detect(
    predictions: Predictions,
    config: FiberConfig,
    label_tokens: Mapping[int, Sequence[int]],
    image_sizes: Sequence[Sequence[int]],
    settings: Settings | None = None,
) -> list[Found]:
    """Find the boxes of all classes in every image.

    Args:
        predictions: of the model.
        config: the model's.
        label_tokens: label, from 1 on, to the indices of its tokens; shared by all images.
        image_sizes: (height, width) of each image without its padding.
        settings: how to choose.
    """
    settings = settings or Settings()
    levels: list[list[Found]] = []
    for index, stride in enumerate(config.detector.strides):
        anchors = level_anchors(
            predictions.deltas[index].shape[-2:], stride, config.detector.anchor_scale
        )
        levels.append(
            _detect_on_level(predictions, index, anchors, label_tokens, image_sizes, settings)
        )
    found = []
    for parts in zip(*levels, strict=True):
        joined = Found(*(torch.cat(values) for values in zip(*parts, strict=True)))
        found.append(_select(joined, settings))
    return found


def level_anchors(size: Sequence[int], stride: int, scale: float) -> Tensor:
    """Squares of side scale x stride at every place, (A, 4)."""
    half = (scale * stride - 1) / 2
    middle = (stride - 1) / 2
    cell = torch.tensor([middle - half, middle - half, middle + half, middle + half])
    rows, columns = (torch.arange(side, dtype=torch.float32) * stride for side in size)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(rows, columns, indexing="ij"))
    return torch.stack((columns, rows, columns, rows), 1) + cell


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Turn (n, 4) deltas from (n, 4) anchors into (n, 4) boxes."""
    sizes = anchors[:, 2:] - anchors[:, :2] + 1
    middles = deltas[:, :2] / 10 * sizes + (anchors[:, 2:] + anchors[:, :2]) / 2
    sizes = (deltas[:, 2:] / 5).clamp(max=MAX_LOG_SCALE).exp() * sizes
    return torch.cat((middles - 0.5 * (sizes - 1), middles + 0.5 * (sizes - 1)), 1)


def _detect_on_level(
    predictions: Predictions,
    index: int,
    anchors: Tensor,
    label_tokens: Mapping[int, Sequence[int]],
    image_sizes: Sequence[Sequence[int]],
    settings: Settings,
) -> list[Found]:
    """Candidates of one level, for every image."""
    # The published code also takes the probabilities of the layer that was never trained.
    unused = to_rows(predictions.unused[index]).sigmoid()
    classes = settings.num_classes or unused.shape[-1]
    scores = _class_scores(
        predictions.tokens[index].sigmoid(), label_tokens, classes, settings.aggregate
    )
    deltas = to_rows(predictions.deltas[index])
    candidates = scores > settings.score_threshold
    counts = candidates.flatten(1).sum(1).clamp(max=settings.candidates_per_level)
    ranks = scores * to_rows(predictions.centerness[index]).sigmoid()
    found = []
    for image, (height, width) in enumerate(image_sizes):
        best, places = ranks[image][candidates[image]].topk(int(counts[image]), sorted=False)
        rows, columns = candidates[image].nonzero()[places].unbind(1)
        boxes = decode(deltas[image][rows], anchors[rows])
        upper = torch.tensor([width, height, width, height]) - 1
        boxes = torch.minimum(boxes.clamp(min=0), upper)
        found.append(Found(boxes, best.sqrt(), columns + 1))
    return found


def _class_scores(
    tokens: Tensor, label_tokens: Mapping[int, Sequence[int]], classes: int, aggregate: str
) -> Tensor:
    """(B, A, L) probabilities of tokens -> (B, A, K) of classes, 0 for those not asked for."""
    scores = torch.zeros(*tokens.shape[:2], classes)
    for label, indices in label_tokens.items():
        own = tokens[:, :, torch.tensor(indices)]
        scores[:, :, label - 1] = own.amax(-1) if aggregate == "max" else own.mean(-1)
    return scores


def _select(found: Found, settings: Settings) -> Found:
    """Suppress within each class, then keep the best of all."""
    # torchvision's widths lack the 1 of inclusive corners.
    boxes = found.boxes + torch.tensor([0.0, 0.0, 1.0, 1.0])
    kept = [torch.zeros(0, dtype=torch.int64)]
    for label in found.labels.unique():
        places = (found.labels == label).nonzero().squeeze(1)
        kept.append(places[nms(boxes[places], found.scores[places], settings.nms_threshold)])
    found = Found(*(part[torch.cat(kept).sort().values] for part in found))
    surplus = len(found.scores) - settings.max_detections
    if surplus > 0:
        lowest = found.scores.kthvalue(surplus + 1).values
        found = Found(*(part[found.scores >= lowest] for part in found))
    return found
