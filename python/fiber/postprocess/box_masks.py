"""Masks of the boxes that were found for phrases, from the same output of the detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fiber.models.features import DetectorOutput
from fiber.ops.masks import enlarged_boxes, masks_on_map
from fiber.postprocess.find import FoundBoxes, Sizes, TokenMap, grounded_locations, join_in_order
from fiber.postprocess.masks import MASKS_AT_ONCE, MaskSizes, final_masks


class FoundMasks(NamedTuple):
    """Boxes in one image with their masks."""

    boxes: FoundBoxes
    #: (n, H, W) bool on the CPU, of the original image; a mask may be empty.
    masks: Tensor


def ground_phrase_masks(
    output: DetectorOutput,
    phrase_token_maps: Sequence[TokenMap],
    image_sizes: Sizes,
    original_sizes: Sizes,
    *,
    boxes_per_phrase: int = 1,
    score_threshold: float = 0.0,
    nms_threshold: float = 0.6,
) -> list[FoundMasks]:
    """Find boxes for each phrase as `ground_phrases` does, and the mask of each box.

    A mask has the pixels in the box, or in a narrow margin around it (`MASK_MARGIN`), whose logit
    is positive.

    Raises:
        ValueError: if the output has no masks, or as `ground_phrases`.
    """
    masks = output.masks
    if masks is None:
        raise ValueError("the output has no masks; expected that of a detector's predict_masks")
    found = grounded_locations(
        output,
        phrase_token_maps,
        image_sizes,
        original_sizes,
        boxes_per_phrase=boxes_per_phrase,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
    )
    embeddings, anchors = torch.cat(masks.embeddings, dim=1), torch.cat(output.anchors)
    height, width = masks.features.shape[2:]
    padded, own = (height * masks.stride, width * masks.stride), []
    for image, (boxes, locations) in enumerate(found):
        inside, wanted = (_pair(sizes[image]) for sizes in (image_sizes, original_sizes))
        logits = masks_on_map(
            embeddings[image, locations].float(),
            masks.features[image].float(),
            anchors[locations],
            masks.stride,
        )
        sizes = MaskSizes(padded, inside, wanted)
        own.append(FoundMasks(boxes, _masks_in_boxes(logits, boxes.boxes_xyxy, sizes)))
    return own


def join_masks(
    chunks: Sequence[FoundMasks], first_labels: Sequence[int], *, max_detections: int | None = None
) -> FoundMasks:
    """Merge the boxes and masks that several prompts found, as `join_chunks`."""
    boxes, order = join_in_order([chunk.boxes for chunk in chunks], first_labels, max_detections)
    return FoundMasks(boxes, torch.cat([chunk.masks for chunk in chunks])[order.cpu()])


def _masks_in_boxes(logits: Tensor, boxes_xyxy: Tensor, sizes: MaskSizes) -> Tensor:
    """Resize (n, h, w) mask logits, and keep positive pixels in boxes of the original image."""
    height, width = sizes.wanted
    masks = torch.zeros(len(logits), height, width, dtype=torch.bool)
    rows = torch.arange(height, device=logits.device) + 0.5
    columns = torch.arange(width, device=logits.device) + 0.5
    x0, y0, x1, y1 = enlarged_boxes(boxes_xyxy).unsqueeze(-1).unbind(1)
    in_rows, in_columns = (y0 <= rows) & (rows < y1), (x0 <= columns) & (columns < x1)
    for start in range(0, len(logits), MASKS_AT_ONCE):
        some = slice(start, start + MASKS_AT_ONCE)
        is_in_box = in_rows[some, :, None] & in_columns[some, None, :]
        masks[some] = ((final_masks(logits[some], *sizes) > 0) & is_in_box).cpu()
    return masks


def _pair(size: Tensor | Sequence[int]) -> tuple[int, int]:
    height, width = size
    return int(height), int(width)
