"""Box decoding, clipping and GIoU as in the published code. IoU and NMS are from torchvision.

Boxes are (..., 4) float xyxy in half-open pixel coordinates, so the width is x1 - x0. They are
tensors or arrays of numpy (`fiber.ops.arrays`).

The published model uses inclusive boxes: (x1, y1) is the last pixel, so the width is x1 - x0 + 1.
Its box coder, IoU and NMS give the same results on half-open boxes. The published code omits the
+ 1 in three computations: the test that an anchor center is inside a box (`fiber.losses.atss`), the
centerness target and the GIoU loss (`fiber.losses.grounding`). Our versions of the three therefore
call `to_inclusive` first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fiber.ops.arrays import functions_of

if TYPE_CHECKING:
    from torch import Tensor

#: Weights of the deltas (x, y, width, height), as in the published code.
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
#: Maximum log ratio of predicted to anchor size, as in the published code.
MAX_LOG_SCALE = math.log(1000.0 / 16.0)


def to_inclusive(boxes_xyxy: Tensor) -> Tensor:
    """Convert half-open boxes to the inclusive boxes of the published model."""
    return boxes_xyxy - boxes_xyxy.new_tensor([0.0, 0.0, 1.0, 1.0])


def centers(boxes_xyxy: Tensor) -> Tensor:
    """Compute the centers (x, y) of boxes: (..., 4) -> (..., 2)."""
    return (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) * 0.5


def paired_giou(first_xyxy: Tensor, second_xyxy: Tensor, *, epsilon: float = 1e-7) -> Tensor:
    """Compute the (N,) elementwise GIoU of two (N, 4) box tensors, as in the published code.

    Inclusive boxes narrower than a pixel have negative sides. In `first_xyxy`, these sides are set
    to 0; `torchvision.ops.generalized_box_iou_loss` would multiply two of them into a positive
    area. `epsilon` is added to the union and the enclosing area.

    Source: Generalized IoU (Rezatofighi et al. 2019).
    """
    f = functions_of(first_xyxy)
    low, high = first_xyxy[:, :2], f.maximum(first_xyxy[:, :2], first_xyxy[:, 2:])
    other_low, other_high = second_xyxy[:, :2], second_xyxy[:, 2:]
    sides = f.clip(f.minimum(high, other_high) - f.maximum(low, other_low), 0)
    intersection = sides[:, 0] * sides[:, 1]
    union = (high - low).prod(1) + (other_high - other_low).prod(1) - intersection + epsilon
    enclosing = (f.maximum(high, other_high) - f.minimum(low, other_low)).prod(1) + epsilon
    return intersection / union - (enclosing - union) / enclosing


def decode_deltas(deltas: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Decode predicted deltas (..., 4) to boxes (..., 4), not clipped to the image.

    The first two deltas are 10 times the center offset divided by the anchor size. The last two are
    5 times the log of the size ratio, which is clamped to at most log(1000 / 16). Anchors are
    broadcast against the deltas.

    Source: Faster R-CNN (Ren et al. 2015), with weights from the published code of FIBER.
    """
    f = functions_of(deltas)
    deltas = deltas / f.array(DELTA_WEIGHTS, deltas)
    anchor_sizes = anchors_xyxy[..., 2:] - anchors_xyxy[..., :2]
    middles = centers(anchors_xyxy) + deltas[..., :2] * anchor_sizes
    halves = f.exp(f.clip(deltas[..., 2:], most=MAX_LOG_SCALE)) * anchor_sizes * 0.5
    return f.concat([middles - halves, middles + halves], -1)


def clip_to_image(boxes_xyxy: Tensor, height: float, width: float) -> Tensor:
    """Clip (..., 4) boxes to an image; each box keeps at least one pixel.

    As in the published code, a box outside the image becomes one pixel at the border;
    `torchvision.ops.clip_boxes_to_image` would make it empty.
    """
    f = functions_of(boxes_xyxy)
    upper = f.array([width, height], boxes_xyxy)
    low = f.minimum(f.clip(boxes_xyxy[..., :2], 0), upper - 1)
    high = f.minimum(f.clip(boxes_xyxy[..., 2:], 1), upper)
    return f.concat([low, high], -1)
