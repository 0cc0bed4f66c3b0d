"""Segments from the masks of `eager_xdecoder.py`, with the published computation.

All masks of an image are resized to the padded input and then to the wanted size, and all of them
go through the sigmoid, before most of them are dropped.

Source: Mask2Former (Cheng et al. 2022), X-Decoder (Zou et al. 2023), structure of their code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Statistics that pixels are normalized by, in units of bytes.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Segment(NamedTuple):
    """Segment of a panoptic map."""

    id: int
    label: int
    is_thing: bool


def normalize(image: Tensor, step: int) -> Tensor:
    """(H, W, 3) bytes -> (1, 3, H', W') normalized, padded with zeros to multiples of `step`."""
    pixels = (image.permute(2, 0, 1) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    height, width = pixels.shape[1:]
    return F.pad(pixels, (0, -width % step, 0, -height % step))[None]


def resize(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Bicubic with antialiasing: (R, H, W) -> (R, *size)."""
    found = F.interpolate(
        masks[None], size=tuple(size), mode="bicubic", align_corners=False, antialias=True
    )
    return found[0]


def final_masks(
    masks: Tensor, padded: Sequence[int], inside: Sequence[int], wanted: Sequence[int]
) -> Tensor:
    """Resize mask logits to the padded input, cut the padding, and resize to the wanted size."""
    return resize(resize(masks, padded)[:, : inside[0], : inside[1]], wanted)


def panoptic(
    class_logits: Tensor,
    masks: Tensor,
    is_thing: Sequence[bool],
    score_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[Segment]]:
    """Panoptic segments of (Q, K + 1) and (Q, H, W) logits: (H, W) ids, and what they are."""
    scores, labels = F.softmax(class_logits, dim=-1).max(-1)
    probabilities = masks.sigmoid()
    kept = labels.ne(len(is_thing)) & (scores > score_threshold)
    scores, labels, own = scores[kept], labels[kept], probabilities[kept]
    ids = torch.zeros(masks.shape[-2:], dtype=torch.int32, device=masks.device)
    segments: list[Segment] = []
    if not len(labels):
        return ids, segments
    owners = (scores.view(-1, 1, 1) * own).argmax(0)
    stuff: dict[int, int] = {}
    for number in range(len(labels)):
        label = int(labels[number])
        owned, inside = owners == number, own[number] >= 0.5
        pixels = owned & inside
        areas = [int(each.sum()) for each in (owned, inside, pixels)]
        if not all(areas) or areas[0] / areas[1] < overlap_threshold:
            continue
        if label in stuff:
            ids[pixels] = stuff[label]
            continue
        segments.append(Segment(len(segments) + 1, label, is_thing[label]))
        ids[pixels] = segments[-1].id
        if not is_thing[label]:
            stuff[label] = segments[-1].id
    return ids, segments


def phrase_masks(
    similarity: Tensor,
    masks: Tensor,
    padded: Sequence[int],
    inside: Sequence[int],
    wanted: Sequence[int],
) -> Tensor:
    """Choose the best mask of each phrase, and resize it: (Q - 1, n) -> (n, H, W) logits."""
    return final_masks(masks[similarity.argmax(0)], padded, inside, wanted)
