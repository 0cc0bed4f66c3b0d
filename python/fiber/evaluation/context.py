"""What every measurement needs: the model with its loader, texts as tensors, metrics by group."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fiber.data import DataLoader, Tokenizer
from fiber.data.prompts.classes import ClassName
from fiber.data.record import Record, RecordSet
from fiber.metrics.groups import by_group
from fiber.models.encoders.roberta import PAD_ID
from fiber.models.fiber.backbone import BackboneOutput, ImagePrefix, Wanted
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.preprocess import inference_transform


@dataclass(frozen=True)
class Measured:
    """What came out."""

    #: Fractions in [0, 1] by name; `cider_d` goes up to 10.
    metrics: dict[str, float]
    #: One entry for each prediction in the task's official format: JSON objects, or lines of text.
    predictions: list[Any] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model that is measured, with what it takes to ask it."""

    network: Any
    tokenizer: Tokenizer
    answers: tuple[str, ...] = ()
    batch_size: int = 64
    threads: int = 0
    #: Whether records show their own pictures, so that their boxes must lie inside.
    own_pictures: bool = True
    #: Best candidates of each query of a retrieval that matching orders again.
    candidates: int = 0
    #: Classes that a prompt of detection asks for; 0: as many as fit; None: as the task has it.
    classes_per_prompt: int | None = None
    #: What prompts say for the classes of detection, in their order; None: their names.
    classes: Sequence[ClassName] | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.network.parameters()).device

    @property
    def image_text(self) -> FiberImageText:
        """The coarse model."""
        assert isinstance(self.network, FiberImageText)
        return self.network

    @property
    def detector(self) -> FiberDetector:
        """The fine model."""
        assert isinstance(self.network, FiberDetector)
        return self.network

    def batches(
        self,
        records: RecordSet,
        batch_type: Literal["image_text", "question", "reasoning", "grounding"],
    ) -> Iterator[tuple[Any, list[Record]]]:
        """Give all records once, in order, as batches on the model's device and as they are.

        The seed is fixed, so that masked words are the same for every model and every run.
        """
        loader = DataLoader(
            records,
            batch_type,
            tokenizer=self.tokenizer,
            transform=inference_transform(self.network.config),
            batch_size=self.batch_size,
            max_tokens=self.network.config.max_tokens,
            threads=self.threads,
            seed=0,
        )
        at = 0
        for batch in loader.epoch():
            yield batch.to(self.device), [records[at + row] for row in range(len(batch))]
            at += len(batch)

    def image_prefix(self, images: Tensor, records: Sequence[Record]) -> ImagePrefix:
        """Run the image tower up to fusion, once for each different picture.

        Args:
            images: (B, 3, H, W).
            records: B records that show them; those of one picture mostly follow one another.
        """
        first: dict[Any, int] = {}
        for row, record in enumerate(records):
            first.setdefault(record.images, row)
        chosen = list(first.values())
        places = {row: place for place, row in enumerate(chosen)}
        rows = torch.tensor([places[first[record.images]] for record in records])
        prefix = self.network.backbone.image_prefix(images[chosen])
        rows = rows.to(images.device)
        return ImagePrefix(prefix.tokens[rows], tuple(stage[rows] for stage in prefix.stages))

    def encode_pair(
        self,
        batch: Any,
        records: Sequence[Record],
        token_ids: Tensor,
        *,
        wanted: Wanted = "all",
    ) -> BackboneOutput:
        """Encode pictures with texts of the batch's mask: the backbone's `encode_pair`."""
        backbone, mask = self.network.backbone, batch.text_mask
        prefix = self.image_prefix(batch.images, records)
        return backbone.fuse(prefix, backbone.text_prefix(token_ids, mask), mask, wanted=wanted)

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokenize texts: (n, L) ids and (n, L) mask, L the longest of them."""
        ids = [
            self.tokenizer.encode(text, max_tokens=self.network.config.max_tokens)[0]
            for text in texts
        ]
        length = max(map(len, ids))
        padded = torch.tensor([row + [PAD_ID] * (length - len(row)) for row in ids])
        lengths = torch.tensor([len(row) for row in ids])
        mask = torch.arange(length) < lengths[:, None]
        return padded.to(self.device), mask.to(self.device)


#: Measures one task: asks the model about all records.
Measure = Callable[[Subject, RecordSet], Measured]


def by_picture(records: RecordSet) -> dict[str, list[Record]]:
    """Group records by the picture that they show, in order: {image_id: records}."""
    groups: dict[str, list[Record]] = {}
    for record in (records[number] for number in range(len(records))):
        groups.setdefault(record.image_id, []).append(record)
    return groups


def with_groups(
    metric: Callable[..., dict[str, float]],
    groups: Sequence[Hashable],
    *columns: Any,
    **options: Any,
) -> dict[str, float]:
    """Compute a metric on all samples and, where they have groups, on each group.

    Returns:
        {"accuracy": 0.5, "colour/accuracy": 0.6, ...}.
    """
    metrics = dict(metric(*columns, **options))
    if any(groups):
        for group, found in by_group(metric, groups, *columns, **options).items():
            metrics |= {
                f"{group or 'other'}/{name}": value
                for name, value in found.items()
                if name != "count"
            }
    return metrics


def entry_id(key: str) -> int | str:
    """Take the id of an annotation out of a record's key: "vqa_questions_val/17" -> 17."""
    last = key.rpartition("/")[2]
    return int(last) if last.isdigit() else last
