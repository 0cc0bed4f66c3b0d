"""From prompts to the boxes of pictures: one pass of the image tower serves every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from fiber.data.prompts import Prompt, caption_prompt, class_prompts
from fiber.models.detector import DetectorOutput, FiberDetector
from fiber.postprocess import Detections, FoundBoxes, detect_boxes, ground_phrases, join_chunks
from fiber.predict.inputs import Inputs, not_empty
from fiber.predict.phrases import noun_phrases

#: Pixels of the transformed pictures that go through the fused layers at once, all pairs together.
PAIR_PIXELS = 4_000_000


class Thresholds(NamedTuple):
    """What is kept of the boxes that were found."""

    #: Lowest score, in [0, 1].
    score: float
    #: Of two boxes of one label whose IoU exceeds it, the better one stays.
    nms: float
    #: Boxes of a picture.
    max_detections: int
    #: Boxes of a phrase; None keeps whatever is above the score.
    boxes_per_phrase: int | None = None

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: for one out of its range.
        """
        for name, value in (("score_threshold", self.score), ("nms_threshold", self.nms)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {value}")
        counts = {"max_detections": self.max_detections, "boxes_per_phrase": self.boxes_per_phrase}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"{name}: expected 1 or more, got {count}")


def prompts_for_classes(names: Sequence[str], inputs: Inputs) -> list[Prompt]:
    """Put classes side by side into as few texts as the model can read."""
    names = not_empty(names, "class")
    return class_prompts(names, inputs.needed_tokenizer(), inputs.config.max_tokens)


def prompts_for_phrases(phrases: Sequence[str]) -> list[Prompt]:
    """Give every phrase a text of its own: its boxes do not depend on the other phrases.

    The whole phrase is read, but a box is scored by the words that name the thing looked for, "the
    star" in "the star left of the ring": so referring expressions are trained and measured.
    """
    prompts = []
    for number, phrase in enumerate(not_empty(phrases, "phrase")):
        head = next(iter(noun_phrases(phrase)), (0, len(phrase)))
        prompts.append(Prompt(phrase, (phrase,), ((head,),), number))
    return prompts


def prompt_for_caption(caption: str, phrases: Sequence[str] | None) -> list[Prompt]:
    """Look for phrases, by default all that `noun_phrases` sees, in their caption.

    Raises:
        ValueError: for a caption without phrases, or a phrase that does not occur in it.
    """
    if phrases is None:
        phrases = [caption[start:end] for start, end in noun_phrases(caption)]
        if not phrases:
            raise ValueError(f"caption {caption!r} holds no phrase that names a thing")
    return [caption_prompt(caption, not_empty(phrases, "phrase"))]


def find_boxes(
    network: FiberDetector,
    inputs: Inputs,
    pictures: Sequence[Any],
    prompts: Sequence[Sequence[Prompt]],
    thresholds: Thresholds,
) -> list[Detections]:
    """Find the boxes of every picture's prompts.

    Args:
        network: in evaluation mode.
        inputs: of the same model.
        pictures: n of whatever `load_image` takes.
        prompts: n lists; the labels of a list count through all its prompts.
        thresholds: what is kept.

    Returns:
        n detections, best box first.
    """
    found: list[Detections | None] = [None] * len(pictures)
    for batch in inputs.images(pictures):
        prefix = network.image_prefix(batch.images, batch.image_sizes)
        todo = [(row, p) for row, index in enumerate(batch.indices) for p in prompts[index]]
        at_once = max(1, PAIR_PIXELS // (batch.images.shape[-1] * batch.images.shape[-2]))
        chunks: list[list[FoundBoxes]] = [[] for _ in batch.indices]
        for start in range(0, len(todo), at_once):
            rows = [row for row, _ in todo[start : start + at_once]]
            texts = inputs.texts([prompt.text for _, prompt in todo[start : start + at_once]])
            backbone = network.backbone
            output = network.predict(
                backbone.fuse(
                    prefix.take(torch.tensor(rows, device=prefix.tokens.device), with_stages=True),
                    backbone.text_prefix(texts.token_ids, texts.text_mask),
                    texts.text_mask,
                )
            )
            maps = [
                prompt.token_map(offsets)
                for (_, prompt), offsets in zip(todo[start:], texts.offsets, strict=False)
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
                batch.pictures[row],
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
        # The threshold is one on the score that comes out, centerness counted, here as there.
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
