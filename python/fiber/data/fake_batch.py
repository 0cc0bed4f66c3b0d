"""Batches of any layout without data, to count the cost of a step."""

from __future__ import annotations

from typing import Any

import torch

from fiber.data.batch import (
    Batch,
    GroundingBatch,
    GroundingMasksBatch,
    ImageTextBatch,
    QuestionBatch,
    ReasoningBatch,
    SegmentationBatch,
)
from fiber.data.loader_config import BatchType


def fake_batch(layout: BatchType, common: dict[str, Any], labels: int) -> Batch:
    """Make a batch of a layout; with fake tensors, only their shapes are of use.

    Args:
        layout: layout of the batch, as in `DataLoader`.
        common: fields of `Batch`.
        labels: number of columns of `QuestionBatch.targets`.

    Returns:
        A batch of the class of the layout. Each image has one box, or one mask and a phrase of the
        text's length, and no token is masked.
    """
    ids = common["token_ids"]
    samples, tokens = ids.shape
    if layout == "question":
        return QuestionBatch(**common, targets=torch.zeros(samples, labels))
    if layout == "reasoning":
        return ReasoningBatch(**common, truths=torch.zeros(samples, dtype=torch.int64))
    height, width = common["images"].shape[-2:]
    masks = torch.zeros(samples, height, -(-width // 8), dtype=torch.uint8)
    if layout in ("grounding", "grounding_masks"):
        boxes: dict[str, Any] = {
            "boxes_xyxy": torch.zeros(samples, 4),
            "boxes_per_image": torch.ones(samples, dtype=torch.int64),
            "positive_map": torch.zeros(samples, tokens, dtype=torch.bool),
        }
        if layout == "grounding":
            return GroundingBatch(**common, **boxes)
        return GroundingMasksBatch(**common, **boxes, box_masks=masks)
    if layout == "segmentation":
        ones = torch.ones(samples, dtype=torch.int64)
        return SegmentationBatch(
            **common,
            masks=masks,
            masks_per_image=ones,
            mask_labels=torch.zeros(samples, dtype=torch.int64),
            phrase_ids=ids,
            phrase_mask=torch.ones_like(ids, dtype=torch.bool),
            phrase_masks=masks,
            phrases_per_image=ones,
        )
    return ImageTextBatch(
        **common,
        image_ids=torch.arange(samples),
        masked_ids=ids,
        mlm_labels=torch.full_like(ids, -100),
    )
