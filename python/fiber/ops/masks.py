"""Masks of images, as logits and as bits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.ops.boxes import centers

#: Values of a location's embedding that weight its place: 1, x, y, x^2 and y^2, relative to the
#: anchor. The others weight the mask features.
PLACE_TERMS = 5
#: Width of the margin around a box that a mask may reach, as a share of the box's sides.
MASK_MARGIN = 0.1


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize mask logits or features: bicubic with antialiasing, (B, C, H, W) -> (B, C, *size)."""
    return F.interpolate(masks, size, mode="bicubic", align_corners=False, antialias=True)


def shrink_masks(masks: Tensor, factor: int) -> Tensor:
    """Resize (B, C, H, W) to (B, C, H / factor, W / factor), as `resize_masks` does.

    It computes by convolutions of rows and columns, whose sizes may be symbolic and which other
    formats have, too. Near borders, the weights inside of the map sum to 1.
    """
    # The weights of output i are centered on factor * (i + 1 / 2) and reach 2 * factor pixels.
    offsets = (torch.arange(4 * factor, dtype=masks.dtype) + 0.5) / factor - 2
    kernel = _cubic(offsets).to(masks.device)
    found = masks.flatten(0, 1).unsqueeze(1)
    for shape, axis in (((1, 1, -1, 1), 2), ((1, 1, 1, -1), 3)):
        weights = kernel.reshape(shape)
        steps: dict[str, list[int]] = {"stride": [1, 1], "padding": [0, 0]}
        steps["stride"][axis - 2], steps["padding"][axis - 2] = factor, 3 * factor // 2
        totals = F.conv2d(torch.ones_like(found[:1]), weights, **steps)
        found = F.conv2d(found, weights, **steps) / totals
    return found.squeeze(1).unflatten(0, masks.shape[:2])


def _cubic(places: Tensor) -> Tensor:
    """Compute the cubic kernel of antialiased resizing (Keys 1981, a = -1 / 2) at -2 to 2."""
    x = places.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def mask_boxes(masks: Tensor) -> Tensor:
    """Compute the half-open xyxy boxes of (N, H, W) bool masks: (N, 4) float32; 0 if empty."""
    boxes = torch.zeros(len(masks), 4, device=masks.device)
    for axis, (first, last) in ((2, (1, 3)), (1, (0, 2))):
        hit = masks.any(axis)
        index = torch.arange(hit.shape[1], device=masks.device)
        size = hit.shape[1]
        found = hit.any(1)
        boxes[:, first] = torch.where(hit, index, size).amin(1).float() * found
        boxes[:, last] = torch.where(hit, index + 1, 0).amax(1).float()
    return boxes


def enlarged_boxes(boxes_xyxy: Tensor) -> Tensor:
    """Add the margin in which a mask may go beyond its box: (n, 4) -> (n, 4)."""
    sizes = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    margin = sizes * MASK_MARGIN
    return torch.cat((boxes_xyxy[:, :2] - margin, boxes_xyxy[:, 2:] + margin), 1)


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
    terms = torch.cat((torch.ones_like(offsets[..., :1]), offsets, offsets**2), -1)
    return torch.einsum("npm,nm->np", features, weights) + torch.einsum("npt,nt->np", terms, place)


def masks_on_map(embeddings: Tensor, features: Tensor, anchors_xyxy: Tensor, stride: int) -> Tensor:
    """Compute mask logits of locations at all places of a map: (N, h, w).

    Args:
        embeddings: (N, M + `PLACE_TERMS`) of locations of one image.
        features: (M, h, w) mask features of the image.
        anchors_xyxy: (N, 4) anchors of the locations.
        stride: stride of the map in pixels.
    """
    place, weights = embeddings[:, :PLACE_TERMS], embeddings[:, PLACE_TERMS:]
    logits = torch.einsum("mhw,nm->nhw", features, weights) + place[:, 0, None, None]
    middles, sizes = centers(anchors_xyxy), anchors_xyxy[:, 2:] - anchors_xyxy[:, :2]
    for axis, count in ((0, features.shape[2]), (1, features.shape[1])):
        places = (torch.arange(count, device=features.device) + 0.5) * stride
        offsets = (places - middles[:, axis, None]) / sizes[:, axis, None]
        own = place[:, 1 + axis, None] * offsets + place[:, 3 + axis, None] * offsets**2
        logits = logits + (own[:, None, :] if axis == 0 else own[:, :, None])
    return logits
