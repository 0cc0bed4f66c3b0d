"""Masks of the boxes that were found for phrases, from the same output of the detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fiber.models.features import DetectorOutput
from fiber.ops.arrays import functions_of
from fiber.ops.masks import enlarged_boxes, masks_on_map
from fiber.postprocess.find import FoundBoxes, Sizes, TokenMap, grounded_locations, join_in_order
from fiber.postprocess.masks import MASKS_AT_ONCE, MaskSizes, final_masks

if TYPE_CHECKING:
    from torch import Tensor


class FoundMasks(NamedTuple):
    """Boxes in one image with their masks."""

    boxes: FoundBoxes
    #: (n, H, W) bool of the original image; a mask may be empty.
    masks: np.ndarray


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
    f = functions_of(masks.features)
    embeddings, anchors = f.concat(masks.embeddings, 1), f.concat(output.anchors)
    height, width = masks.features.shape[2:]
    padded, own = (height * masks.stride, width * masks.stride), []
    for image, (boxes, locations) in enumerate(found):
        inside, wanted = (_pair(sizes[image]) for sizes in (image_sizes, original_sizes))
        logits = masks_on_map(
            f.float32(embeddings[image, locations]),
            f.float32(masks.features[image]),
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
    order = functions_of(order).as_numpy(order)
    return FoundMasks(boxes, np.concatenate([chunk.masks for chunk in chunks])[order])


def _masks_in_boxes(logits: Tensor, boxes_xyxy: Tensor, sizes: MaskSizes) -> np.ndarray:
    """Resize (n, h, w) mask logits, and keep positive pixels in boxes of the original image."""
    height, width = sizes.wanted
    f = functions_of(logits)
    masks = np.zeros((len(logits), height, width), bool)
    rows, columns = (f.float32(f.arange(side, logits)) + 0.5 for side in (height, width))
    boxes = enlarged_boxes(boxes_xyxy)
    x0, y0, x1, y1 = (boxes[:, edge, None] for edge in range(4))
    in_rows, in_columns = (y0 <= rows) & (rows < y1), (x0 <= columns) & (columns < x1)
    for start in range(0, len(logits), MASKS_AT_ONCE):
        some = slice(start, start + MASKS_AT_ONCE)
        is_in_box = in_rows[some, :, None] & in_columns[some, None, :]
        masks[some] = f.as_numpy((final_masks(logits[some], *sizes) > 0) & is_in_box)
    return masks


def _pair(size: Tensor | np.ndarray | Sequence[int]) -> tuple[int, int]:
    height, width = size
    return int(height), int(width)
