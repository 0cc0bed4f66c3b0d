"""Masks of images, as logits and as bits: tensors, or arrays of numpy (`fiber.ops.arrays`)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fiber.ops.arrays import functions_of
from fiber.ops.boxes import centers

if TYPE_CHECKING:
    from torch import Tensor

#: Values of a location's embedding that weight its place: 1, x, y, x^2 and y^2, relative to the
#: anchor. The others weight the mask features.
PLACE_TERMS = 5
#: Width of the margin around a box that a mask may reach, as a share of the box's sides.
MASK_MARGIN = 0.1


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize mask logits or features: bicubic with antialiasing, (B, C, H, W) -> (B, C, *size)."""
    if isinstance(masks, np.ndarray):
        rows, columns = (
            _resize_matrix(own, wanted) for own, wanted in zip(masks.shape[2:], size, strict=True)
        )
        return cast("Any", rows @ masks @ columns.T)
    import torch.nn.functional as F

    return F.interpolate(masks, size, mode="bicubic", align_corners=False, antialias=True)


@lru_cache(maxsize=64)
def _resize_matrix(own: int, wanted: int) -> np.ndarray:
    """Return the weights of pixels in each pixel of the output, as torch has them: (wanted, own).

    The cubic kernel has a = -1 / 2 (Keys 1981), and is as wide as the scale if that is above 1.
    """
    scale = own / wanted
    middles = (np.arange(wanted)[:, None] + 0.5) * scale
    x = np.abs(np.arange(own) + 0.5 - middles) / max(scale, 1.0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def mask_boxes(masks: Tensor) -> Tensor:
    """Compute the half-open xyxy boxes of (N, H, W) bool masks: (N, 4) float32; 0 if empty."""
    f = functions_of(masks)
    edges = []
    for axis in (1, 2):
        hit = masks.any(axis)
        index = f.arange(hit.shape[1], masks)
        size, found = hit.shape[1], hit.any(1)
        first = f.smallest(f.where(hit, index, index * 0 + size), 1)
        last = f.largest(f.where(hit, index + 1, index * 0), 1)
        edges.append((f.float32(first) * found, f.float32(last)))
    (left, right), (top, bottom) = edges
    return f.stack([left, top, right, bottom], 1)


def enlarged_boxes(boxes_xyxy: Tensor) -> Tensor:
    """Add the margin in which a mask may go beyond its box: (n, 4) -> (n, 4)."""
    sizes = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    margin = sizes * MASK_MARGIN
    f = functions_of(boxes_xyxy)
    return f.concat((boxes_xyxy[:, :2] - margin, boxes_xyxy[:, 2:] + margin), 1)


def masks_at_points(
    embeddings: Tensor, features: Tensor, points: Tensor, anchors_xyxy: Tensor
) -> Tensor:
    """Compute mask logits of locations at points: (N, P).

    Args:
        embeddings: (N, M + `PLACE_TERMS`) of the locations.
        features: (N, P, M) mask features at the points.
        points: (N, P, 2) x and y in pixels.
        anchors_xyxy: (N, 4) anchors of the locations.
    """
    place, weights = embeddings[:, :PLACE_TERMS], embeddings[:, PLACE_TERMS:]
    middles, sizes = centers(anchors_xyxy), anchors_xyxy[:, 2:] - anchors_xyxy[:, :2]
    offsets = (points - middles[:, None]) / sizes[:, None]
    f = functions_of(embeddings)
    terms = f.concat((offsets[..., :1] * 0 + 1, offsets, offsets**2), -1)
    return f.einsum("npm,nm->np", features, weights) + f.einsum("npt,nt->np", terms, place)


def masks_on_map(embeddings: Tensor, features: Tensor, anchors_xyxy: Tensor, stride: int) -> Tensor:
    """Compute mask logits of locations at all places of a map: (N, h, w).

    Args:
        embeddings: (N, M + `PLACE_TERMS`) of locations of one image.
        features: (M, h, w) mask features of the image.
        anchors_xyxy: (N, 4) anchors of the locations.
        stride: stride of the map in pixels.
    """
    place, weights = embeddings[:, :PLACE_TERMS], embeddings[:, PLACE_TERMS:]
    f = functions_of(embeddings)
    logits = f.einsum("mhw,nm->nhw", features, weights) + place[:, 0, None, None]
    middles, sizes = centers(anchors_xyxy), anchors_xyxy[:, 2:] - anchors_xyxy[:, :2]
    for axis, count in ((0, features.shape[2]), (1, features.shape[1])):
        places = (f.float32(f.arange(count, features)) + 0.5) * stride
        offsets = (places - middles[:, axis, None]) / sizes[:, axis, None]
        own = place[:, 1 + axis, None] * offsets + place[:, 3 + axis, None] * offsets**2
        logits = logits + (own[:, None, :] if axis == 0 else own[:, :, None])
    return logits
