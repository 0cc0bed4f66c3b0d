"""Predict boxes for prompts, running the image encoder once per image."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from fiber.data.prompts.classes import Prompt
from fiber.inference.inputs import Inputs
from fiber.inference.text_feature_cache import TextPrefixes
from fiber.messages import shown
from fiber.models.abilities import FindsBoxes
from fiber.models.features import DetectorOutput
from fiber.postprocess import Detections, FoundBoxes, detect_boxes, ground_phrases, join_chunks

#: Maximum total image pixels in a batch of (image, prompt) pairs in the fused layers.
PAIR_PIXELS = 4_000_000


class Thresholds(NamedTuple):
    """Thresholds for box selection."""

    #: Minimum score, in [0, 1].
    score: float
    #: IoU above which the lower-scored of two boxes with the same label is removed.
    nms: float
    #: Maximum number of boxes per image.
    max_detections: int
    #: Maximum number of boxes per phrase, or None for no limit (in detection).
    boxes_per_phrase: int | None = None

    def check(self) -> None:
        """Raise TypeError or ValueError if a threshold has the wrong type or is out of range."""
        for name, value in (("score_threshold", self.score), ("nms_threshold", self.nms)):
            if not isinstance(value, numbers.Real):
                raise TypeError(f"{name} must be a number between 0 and 1, got {shown(value)}")
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        counts = {"max_detections": self.max_detections, "boxes_per_phrase": self.boxes_per_phrase}
        for name, count in counts.items():
            if count is not None and not isinstance(count, numbers.Integral):
                raise TypeError(f"{name} must be an integer, got {shown(count)}")
            if count is not None and count < 1:
                raise ValueError(f"{name} must be 1 or more, got {count}")


@dataclass
class PassCounts:
    """Forward pass counters."""

    images: int = 0
    #: Number of image encoder batches. All images of a batch have the same padded size.
    encoder_passes: int = 0
    #: Number of (image, prompt) pairs that passed through the fused layers and the head.
    pairs: int = 0


def find_boxes(
    network: FindsBoxes,
    inputs: Inputs,
    text_prefixes: TextPrefixes,
    images: Sequence[Any],
    prompts: Sequence[Sequence[Prompt]],
    thresholds: Thresholds,
    passes: PassCounts,
) -> list[Detections]:
    """Find boxes for the prompts of each image, best box first.

    `prompts` has one list per image. The labels of an image are numbered consecutively across its
    prompts. `passes` is updated in place.
    """
    found: list[Detections | None] = [None] * len(images)
    for batch in inputs.images(images):
        prefix = network.image_prefix(batch.images, batch.image_sizes)
        todo = [(row, p) for row, index in enumerate(batch.indices) for p in prompts[index]]
        passes.images += len(batch.indices)
        passes.encoder_passes += 1
        passes.pairs += len(todo)
        at_once = max(1, PAIR_PIXELS // (batch.images.shape[-1] * batch.images.shape[-2]))
        chunks: list[list[FoundBoxes]] = [[] for _ in batch.indices]
        for start in range(0, len(todo), at_once):
            some = todo[start : start + at_once]
            rows = [row for row, _ in some]
            texts = text_prefixes.batch([prompt.text for _, prompt in some])
            output = network.predict(
                network.backbone.fuse(
                    prefix.take(torch.tensor(rows, device=prefix.tokens.device), with_stages=True),
                    texts.prefix,
                    texts.text_mask,
                )
            )
            maps = [
                prompt.token_map(offsets)
                for (_, prompt), offsets in zip(some, texts.offsets, strict=True)
            ]
            sizes = batch.image_sizes[rows], batch.original_sizes[rows]
            for row, boxes in zip(rows, _select(output, maps, *sizes, thresholds), strict=True):
                chunks[row].append(boxes)
        for row, index in enumerate(batch.indices):
            found[index] = Detections.from_found(
                join_chunks(
                    chunks[row],
                    [prompt.first_label for prompt in prompts[index]],
                    max_detections=thresholds.max_detections,
                ),
                [label for prompt in prompts[index] for label in prompt.labels],
                tuple(batch.original_sizes[row].tolist()),
                batch.originals[row],
            )
    return [each for each in found if each is not None]


def _select(
    output: DetectorOutput,
    maps: Sequence[Sequence[Sequence[int]]],
    image_sizes: torch.Tensor,
    original_sizes: torch.Tensor,
    thresholds: Thresholds,
) -> list[FoundBoxes]:
    if thresholds.boxes_per_phrase is None:
        found = detect_boxes(
            output,
            maps,
            image_sizes,
            original_sizes,
            score_threshold=0.0,
            nms_threshold=thresholds.nms,
            max_detections=thresholds.max_detections,
        )
        # As in grounding, apply the threshold to the final score, which includes centerness.
        return [FoundBoxes(*(part[f.scores >= thresholds.score] for part in f)) for f in found]
    return ground_phrases(
        output,
        maps,
        image_sizes,
        original_sizes,
        boxes_per_phrase=thresholds.boxes_per_phrase,
        score_threshold=thresholds.score,
        nms_threshold=thresholds.nms,
    )
