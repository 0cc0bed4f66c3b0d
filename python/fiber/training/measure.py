"""What every measurement needs: the model with its loader, texts as tensors, metrics by group."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fiber.data import DataLoader, Tokenizer
from fiber.data.records import RecordSet
from fiber.metrics.groups import by_group
from fiber.models.detector import FiberDetector
from fiber.models.image_text import FiberImageText
from fiber.models.roberta import PAD_ID
from fiber.training.streams import inference_transform


@dataclass(frozen=True)
class Measured:
    """What came out."""

    #: Fractions in [0, 1] by name.
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
    ) -> Iterator[Any]:
        """Give all records once, in order, on the model's device.

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
        for batch in loader.epoch():
            yield batch.to(self.device)

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
