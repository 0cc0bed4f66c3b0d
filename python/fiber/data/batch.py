"""Batches: what the loader gives and the model takes. Frozen dataclasses of tensors.

Letters: B pictures, H W pixels after the transform and padding, L tokens, G boxes of the whole
batch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

BatchT = TypeVar("BatchT", bound="Batch")


class Skipped(NamedTuple):
    """A sample that was left out or replaced."""

    #: Key of the record; "#index" where the record itself cannot be had.
    key: str
    #: "missing", "corrupt", "unsupported", or "invalid": the picture is not at fault.
    status: str
    #: What is wrong.
    reason: str


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What every batch holds."""

    #: Record of each sample, for messages and prediction files.
    keys: tuple[str, ...]
    #: (B, 3, H, W) normalised pictures; (B, 2, 3, H, W) where a record has two.
    images: Tensor
    #: (B, 2) int64: (height, width) of the picture inside the padded tensor, in pixels.
    image_sizes: Tensor
    #: (B, 2) int64: (height, width) of the stored picture, in pixels.
    original_sizes: Tensor
    #: (B, L) int64, padded with the tokenizer's `pad_id`.
    token_ids: Tensor
    #: (B, L) bool, True = real token.
    text_mask: Tensor
    #: What became of each sample's pictures, as the loader found them: "ok", or "truncated" where a
    #: part was missing or damaged and is filled. Empty for batches that were made otherwise.
    statuses: tuple[str, ...] = ()
    #: Samples that were left out of this batch or replaced in it.
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        size = len(self.keys)
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor) and f.name not in _RAGGED and value.shape[0] != size:
                raise ValueError(
                    f"{type(self).__name__}.{f.name} has shape {tuple(value.shape)};"
                    f" expected {size} samples first"
                )

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        parts = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                parts.append(f"{f.name}={str(value.dtype)[6:]}{tuple(value.shape)}")
            elif value:
                parts.append(f"{f.name}=<{len(value)}>")
        return f"{type(self).__name__}({', '.join(parts)})"

    def to(self: BatchT, device: torch.device | str, non_blocking: bool = True) -> BatchT:
        """Move every tensor to a device; keys stay."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=non_blocking)
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True, kw_only=True, repr=False)
class ImageTextBatch(Batch):
    """Pictures with captions: contrastive, matching, masked words, captioning."""

    #: (B,) int64: equal numbers mean the same picture.
    image_ids: Tensor
    #: (B, L) int64: token_ids with some tokens masked (80 % <mask>, 10 % another, 10 % unchanged).
    masked_ids: Tensor
    #: (B, L) int64: the original id where a token was picked for masking, else -100.
    mlm_labels: Tensor


@dataclass(frozen=True, kw_only=True, repr=False)
class QuestionBatch(Batch):
    """Pictures with questions (VQA)."""

    #: (B, answers) float32 soft scores in [0, 1].
    targets: Tensor


@dataclass(frozen=True, kw_only=True, repr=False)
class ReasoningBatch(Batch):
    """Pairs of pictures with a statement (NLVR2); images are (B, 2, 3, H, W)."""

    #: (B,) int64: 1 where the statement is true.
    truths: Tensor


@dataclass(frozen=True, kw_only=True, repr=False)
class GroundingBatch(Batch):
    """Pictures with a text and the boxes that its spans name."""

    #: (G, 4) float32 boxes in pixels of the transformed picture, half-open, picture by picture.
    boxes_xyxy: Tensor
    #: (B,) int64: how many of the G boxes belong to each picture.
    boxes_per_image: Tensor
    #: (G, L) bool: the tokens that name each box.
    positive_map: Tensor


#: Tensors whose first dimension counts boxes, not samples.
_RAGGED = {"boxes_xyxy", "positive_map"}
