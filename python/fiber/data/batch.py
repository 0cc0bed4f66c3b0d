"""Batches passed from the loader to the model, as frozen dataclasses of tensors.

Dimensions: B samples, H x W pixels after transform and padding, L tokens, G boxes in the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

BatchT = TypeVar("BatchT", bound="Batch")


class Skipped(NamedTuple):
    """A sample that was dropped or replaced."""

    #: Key of the record; "#index" if the record set failed to return it.
    key: str
    #: "missing", "corrupt", "unsupported" (image), or "invalid" (anything else).
    status: str
    #: Error message.
    reason: str


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Fields common to all batches.

    The first dimension of a tensor indexes the samples, but for those in `ragged`.
    """

    #: Tensors with any number of rows for each sample, in the order of the samples: field -> field
    #: with the (B,) int64 numbers of rows.
    ragged: ClassVar[Mapping[str, str]] = MappingProxyType({})

    #: Key of each record, for messages and prediction files.
    keys: tuple[str, ...]
    #: (B, 3, H, W) normalized; (B, 2, 3, H, W) for records with two images.
    images: Tensor
    #: (B, 2) int64: (height, width) without padding, in pixels.
    image_sizes: Tensor
    #: (B, 2) int64: (height, width) of the stored image, in pixels.
    original_sizes: Tensor
    #: (B, L) int64, padded with the tokenizer's `pad_id`.
    token_ids: Tensor
    #: (B, L) bool, True = real token.
    text_mask: Tensor
    #: Decoding status of each sample: "ok", or "truncated" if missing or damaged data were filled
    #: in. Empty for batches not created by the loader.
    statuses: tuple[str, ...] = ()
    #: Samples of this batch that were dropped or replaced.
    skipped: tuple[Skipped, ...] = ()
    #: (epoch, record index) of each sample, from which its random numbers are drawn. Empty for
    #: batches not created by `DataLoader`.
    samples: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        size = len(self.keys)
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and name not in self.ragged and value.shape[0] != size:
                raise ValueError(
                    f"{type(self).__name__}.{name} has shape {tuple(value.shape)}; expected a first"
                    f" dimension of {size}, the number of keys"
                )

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        parts = []
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                parts.append(f"{name}={str(value.dtype)[6:]}{tuple(value.shape)}")
            elif value:
                parts.append(f"{name}=<{len(value)}>")
        return f"{type(self).__name__}({', '.join(parts)})"

    def to(self: BatchT, device: torch.device | str, non_blocking: bool = True) -> BatchT:
        """Move all tensors to a device."""
        tensors = {name: each for name, each in vars(self).items() if isinstance(each, Tensor)}
        moved = {name: each.to(device, non_blocking=non_blocking) for name, each in tensors.items()}
        return dataclasses.replace(self, **moved)

    def rows(self: BatchT, rows: slice) -> BatchT:
        """Return the batch of a range of samples. Samples that were skipped have no row."""
        chosen = {}
        for name, each in vars(self).items():
            per_sample = isinstance(each, Tensor) and name not in self.ragged
            if per_sample or name in ("keys", "statuses", "samples"):
                chosen[name] = each[rows]
        return dataclasses.replace(self, skipped=(), **chosen, **self._ragged_rows(rows))

    def _ragged_rows(self, rows: slice) -> dict[str, Tensor]:
        """Return the rows of the fields in `ragged` that belong to a range of samples."""
        first, last = rows.indices(len(self))[:2]
        chosen = {}
        for name, counts in self.ragged.items():
            # Index 0 is the start of the first sample.
            ends = [0, *getattr(self, counts).cumsum(0).tolist()]
            chosen[name] = getattr(self, name)[ends[first] : ends[max(first, last)]]
        return chosen


@dataclass(frozen=True, kw_only=True, repr=False)
class ImageTextBatch(Batch):
    """Batch of images and captions, used for ITC, ITM, MLM and captioning."""

    #: (B,) int64: image number, shared by all captions of an image.
    image_ids: Tensor
    #: (B, L) int64: `token_ids` after masking (80% <mask>, 10% random, 10% unchanged).
    masked_ids: Tensor
    #: (B, L) int64: the original token id where a token was selected for masking, else -100.
    mlm_labels: Tensor


@dataclass(frozen=True, kw_only=True, repr=False)
class RankingBatch(ImageTextBatch):
    """Batch of images with their captions, and K captions of other images for each of them.

    Used to train METER's ranking head. `token_ids` are padded to the same length L.
    """

    #: (B, K, L) int64, padded with the tokenizer's `pad_id`.
    false_ids: Tensor
    #: (B, K, L) bool, True = real token.
    false_mask: Tensor


@dataclass(frozen=True, kw_only=True, repr=False)
class QuestionBatch(Batch):
    """Batch of images and questions (VQA)."""

    #: (B, answers) float32 soft scores in [0, 1].
    targets: Tensor


@dataclass(frozen=True, kw_only=True, repr=False)
class ReasoningBatch(Batch):
    """Batch of image pairs and statements (NLVR2), with images of shape (B, 2, 3, H, W)."""

    #: (B,) int64: 1 if the statement is true, else 0.
    truths: Tensor


@dataclass(frozen=True, kw_only=True, repr=False)
class GroundingBatch(Batch):
    """Batch of images, each with a text and boxes for spans of that text."""

    ragged: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(("boxes_xyxy", "positive_map"), "boxes_per_image")
    )

    #: (G, 4) float32, half-open pixel coordinates in the transformed image, ordered by image.
    boxes_xyxy: Tensor
    #: (B,) int64: number of boxes of each image.
    boxes_per_image: Tensor
    #: (G, L) bool, True = the token names the box.
    positive_map: Tensor


@dataclass(frozen=True, kw_only=True, repr=False)
class GroundingMasksBatch(GroundingBatch):
    """Batch of images, each with a text and boxes for spans of that text, and their masks."""

    ragged: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(("boxes_xyxy", "positive_map", "box_masks"), "boxes_per_image")
    )

    #: (G, H, ceil(W / 8)) uint8: packed mask of each box; all 0 if it has none. See
    #: `SegmentationBatch`.
    box_masks: Tensor


@dataclass(frozen=True, kw_only=True, repr=False)
class SegmentationBatch(Batch):
    """Batch of images with M masks and P phrases in total, each phrase with the union of its masks.

    Masks are packed as by `numpy.packbits`: the first pixel of a row is the highest bit of its
    first byte. They are 0 in the padding.
    """

    ragged: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **dict.fromkeys(("masks", "mask_labels"), "masks_per_image"),
            **dict.fromkeys(("phrase_ids", "phrase_mask", "phrase_masks"), "phrases_per_image"),
        }
    )

    #: (M, H, ceil(W / 8)) uint8: packed masks without those of crowds, ordered by image.
    masks: Tensor
    #: (B,) int64: number of masks of each image.
    masks_per_image: Tensor
    #: (M,) int64: index of each mask's class in `Record.labels`.
    mask_labels: Tensor
    #: (P, L) int64: tokens of each phrase, ordered by image and padded with the tokenizer's
    #: `pad_id`; L is not that of `token_ids`.
    phrase_ids: Tensor
    #: (P, L) bool, True = real token.
    phrase_mask: Tensor
    #: (P, H, ceil(W / 8)) uint8: packed masks of the phrases.
    phrase_masks: Tensor
    #: (B,) int64: number of phrases of each image.
    phrases_per_image: Tensor

    def masks_of(self, index: int) -> Tensor:
        """Return the masks of an image as (m, H, W) bool, on the device of the batch."""
        return self._unpacked("masks", index)

    def phrase_masks_of(self, index: int) -> Tensor:
        """Return the masks of the phrases of an image as (p, H, W) bool."""
        return self._unpacked("phrase_masks", index)

    def _unpacked(self, name: str, index: int) -> Tensor:
        counts: Tensor = getattr(self, self.ragged[name])
        end = int(counts[: index + 1].sum())
        packed: Tensor = getattr(self, name)[end - int(counts[index]) : end]
        return unpack_masks(packed, self.images.shape[-1])


def unpack_masks(packed: Tensor, width: int) -> Tensor:
    """Unpack (n, H, ceil(W / 8)) uint8 masks of a batch as (n, H, W) bool."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    bits = (packed[..., None] >> shifts) & 1
    return bits.flatten(-2)[..., :width].bool()
