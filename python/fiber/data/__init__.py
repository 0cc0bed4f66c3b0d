"""Data: records, the loader that turns them into batches, and generated data sets."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fiber._core import (
        ColorJitter,
        ImageTransform,
        RandAugment,
        Tokenizer,
        apply_transform,
    )
    from fiber.data.batches import (
        Batch,
        GroundingBatch,
        ImageTextBatch,
        QuestionBatch,
        ReasoningBatch,
        Skipped,
    )
    from fiber.data.collate import Collator
    from fiber.data.images import load_image
    from fiber.data.loader import DataLoader
    from fiber.data.opening import open_source
    from fiber.data.packing import pack
    from fiber.data.prompts import ClassName
    from fiber.data.records import ConcatRecords, Record, RecordSet

__all__ = [
    "Batch",
    "ClassName",
    "Collator",
    "ColorJitter",
    "ConcatRecords",
    "DataLoader",
    "GroundingBatch",
    "ImageTextBatch",
    "ImageTransform",
    "QuestionBatch",
    "RandAugment",
    "ReasoningBatch",
    "Record",
    "RecordSet",
    "Skipped",
    "Tokenizer",
    "apply_transform",
    "load_image",
    "open_source",
    "pack",
]

# Where each public name lives: records and transforms can be used without torch.
_HOMES = {
    "Batch": "fiber.data.batches",
    "ClassName": "fiber.data.prompts",
    "Collator": "fiber.data.collate",
    "ColorJitter": "fiber._core",
    "ConcatRecords": "fiber.data.records",
    "DataLoader": "fiber.data.loader",
    "GroundingBatch": "fiber.data.batches",
    "ImageTextBatch": "fiber.data.batches",
    "ImageTransform": "fiber._core",
    "QuestionBatch": "fiber.data.batches",
    "RandAugment": "fiber._core",
    "ReasoningBatch": "fiber.data.batches",
    "Record": "fiber.data.records",
    "RecordSet": "fiber.data.records",
    "Skipped": "fiber.data.batches",
    "Tokenizer": "fiber._core",
    "apply_transform": "fiber._core",
    "load_image": "fiber.data.images",
    "open_source": "fiber.data.opening",
    "pack": "fiber.data.packing",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fiber.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
