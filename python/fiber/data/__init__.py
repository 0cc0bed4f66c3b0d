"""Records, dataset readers and the data loader."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fiber._core import ColorJitter, ImageTransform, RandAugment, Tokenizer, apply_transform
    from fiber.data.batch import (
        Batch,
        GroundingBatch,
        GroundingMasksBatch,
        ImageTextBatch,
        QuestionBatch,
        RankingBatch,
        ReasoningBatch,
        SegmentationBatch,
        Skipped,
    )
    from fiber.data.collate import Collator
    from fiber.data.datasets.resolve import open_source
    from fiber.data.image import load_image
    from fiber.data.loader import DataLoader
    from fiber.data.masks.codec import decode_masks, encode_rle
    from fiber.data.masks.mask import IdMap, PackedMask, Polygons, Rle
    from fiber.data.prompts.classes import ClassName
    from fiber.data.record import ConcatRecords, Record, RecordSet
    from fiber.data.storage.remote import RemoteError
    from fiber.data.storage.remote_pack import remote_pack
    from fiber.data.storage.video import VideoFrame, video_frames
    from fiber.data.tools.pack import pack
    from fiber.data.writers.convert import convert

__all__ = [
    "Batch",
    "ClassName",
    "Collator",
    "ColorJitter",
    "ConcatRecords",
    "DataLoader",
    "GroundingBatch",
    "GroundingMasksBatch",
    "IdMap",
    "ImageTextBatch",
    "ImageTransform",
    "PackedMask",
    "Polygons",
    "QuestionBatch",
    "RandAugment",
    "RankingBatch",
    "ReasoningBatch",
    "Record",
    "RecordSet",
    "RemoteError",
    "Rle",
    "SegmentationBatch",
    "Skipped",
    "Tokenizer",
    "VideoFrame",
    "apply_transform",
    "convert",
    "decode_masks",
    "encode_rle",
    "load_image",
    "open_source",
    "pack",
    "remote_pack",
    "video_frames",
]

# Module of each public name, imported on first use since records and transforms do not need torch.
_CORE = ("ColorJitter", "ImageTransform", "RandAugment", "Tokenizer", "apply_transform")
_HOMES = dict.fromkeys(__all__, "fiber.data.batch") | {
    **dict.fromkeys(_CORE, "fiber._core"),
    **dict.fromkeys(("ConcatRecords", "Record", "RecordSet"), "fiber.data.record"),
    **dict.fromkeys(("IdMap", "PackedMask", "Polygons", "Rle"), "fiber.data.masks.mask"),
    **dict.fromkeys(("VideoFrame", "video_frames"), "fiber.data.storage.video"),
    **dict.fromkeys(("decode_masks", "encode_rle"), "fiber.data.masks.codec"),
    "ClassName": "fiber.data.prompts.classes",
    "Collator": "fiber.data.collate",
    "convert": "fiber.data.writers.convert",
    "DataLoader": "fiber.data.loader",
    "load_image": "fiber.data.image",
    "open_source": "fiber.data.datasets.resolve",
    "pack": "fiber.data.tools.pack",
    "RemoteError": "fiber.data.storage.remote",
    "remote_pack": "fiber.data.storage.remote_pack",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fiber.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
