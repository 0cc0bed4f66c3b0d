"""Box overlaps in double precision: torchvision's functions applied to NumPy arrays.

Boxes are xyxy in half-open pixel or normalized coordinates. torchvision is imported on the first
call, so that metrics load without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from torch import Tensor


#: Arrays of boxes in a table of `overlaps_with_own`.
_ARRAYS_AT_ONCE = 64


def as_boxes(boxes: ArrayLike) -> NDArray[np.float64]:
    """Convert boxes to (N, 4) float64; an empty list becomes (0, 4).

    Raises:
        ValueError: if the shape is wrong.
    """
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"boxes have shape {array.shape}; expected (n, 4) xyxy")
    return array


def pairwise_iou(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Compute the (N, G) IoUs of (N, 4) and (G, 4) boxes, with 0 where both are empty."""
    from torchvision.ops import box_iou

    return _pairwise(box_iou, first, second)


def pairwise_giou(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Compute the (N, G) GIoUs of (N, 4) and (G, 4) boxes, with 0 where both are empty.

    Source: Rezatofighi et al. 2019.
    """
    from torchvision.ops import generalized_box_iou

    return _pairwise(generalized_box_iou, first, second)


def overlaps_with_own(
    overlap: Callable[[ArrayLike, ArrayLike], NDArray[np.float64]],
    boxes: Sequence[ArrayLike],
    own: NDArray[np.float64],
) -> list[NDArray[np.float64]]:
    """Compute the overlaps of several arrays of boxes, each with a box of its own.

    `overlap` is one of the functions above, `boxes` N arrays of (M, 4), and `own` (N, 4). Returns N
    arrays of (M,).

    Raises:
        ValueError: if the numbers of arrays and boxes differ, or a shape is wrong.
    """
    if len(boxes) != len(own):
        raise ValueError(f"expected {len(own)} arrays of boxes, one per box, got {len(boxes)}")
    found: list[NDArray[np.float64]] = []
    # A table of many arrays, of which most is not needed, takes less time than a call for each.
    for start in range(0, len(own), _ARRAYS_AT_ONCE):
        part = [as_boxes(each) for each in boxes[start : start + _ARRAYS_AT_ONCE]]
        counts = [len(each) for each in part]
        rows = np.repeat(np.arange(len(part)), counts)
        table = overlap(np.concatenate(part), own[start : start + _ARRAYS_AT_ONCE])
        found += np.split(table[np.arange(len(rows)), rows], np.cumsum(counts)[:-1])
    return found


def _pairwise(
    overlap: Callable[[Tensor, Tensor], Tensor], first: ArrayLike, second: ArrayLike
) -> NDArray[np.float64]:
    import torch

    tensors = []
    for boxes in (as_boxes(first), as_boxes(second)):
        # Treat inverted boxes as empty; torchvision would compute a positive area from two negative
        # sides.
        low, high = boxes[:, :2], np.maximum(boxes[:, :2], boxes[:, 2:])
        tensors.append(torch.from_numpy(np.concatenate([low, high], axis=1)))
    return overlap(*tensors).nan_to_num().numpy()
