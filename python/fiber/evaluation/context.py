"""Evaluation context: a model with its loader and options, and what an evaluation returns."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fiber.checkpoints.model_dir import NO_TOKENIZER
from fiber.checkpoints.provenance import TrainedOn
from fiber.data import DataLoader, Tokenizer
from fiber.data.prompts.classes import ClassName
from fiber.data.record import Record, RecordSet
from fiber.metrics.groups import by_group
from fiber.models.fiber.backbone import BackboneOutput, ImagePrefix, Wanted
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.registry import inference_transform


@runtime_checkable
class EvalModel(Protocol):
    """A model that can be evaluated: `fiber.inference.Model` and `StoredModel` are."""

    @property
    def network(self) -> FiberImageText | FiberDetector:
        """Network with its config; it is set to evaluation mode."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Tokenizer; None if the model came without one, and evaluation is refused."""
        ...

    @property
    def answers(self) -> tuple[str, ...]:
        """Answers of the VQA head in the order of its logits; empty without one."""
        ...

    @property
    def trained_on(self) -> TrainedOn | None:
        """Training data, if known; evaluation on the same split warns."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the computation; anything but float32 runs under autocast."""
        ...


@dataclass(frozen=True)
class EvalResult:
    """Metrics and predictions of one task."""

    #: Fractions in [0, 1] by name; `cider_d` goes up to 10.
    metrics: dict[str, float]
    #: Predictions in the task's official format: JSON objects, or lines of text.
    predictions: list[Any] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """The evaluated model and the options of its evaluation."""

    network: Any
    tokenizer: Tokenizer
    answers: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    batch_size: int = 64
    #: Threads of the loader; 0 uses every core.
    threads: int = 0
    #: Give every record the image of another record.
    permute_images: bool = False
    #: False closes the gates of all cross-attentions.
    fusion: bool = True
    #: Candidates of each retrieval query that ITM re-ranks; 0: no re-ranking.
    candidates: int = 0
    #: Most classes of a detection prompt; 0: as many as fit; None: the task's default.
    classes_per_prompt: int | None = None
    #: Names of the classes in detection prompts, in the order of the labels; None: the labels.
    classes: Sequence[ClassName] | None = None

    @classmethod
    def of(cls, model: EvalModel, **options: Any) -> EvalContext:
        """Make a context for a model, in evaluation mode.

        Args:
            model: a model with its tokenizer.
            options: the other fields.

        Raises:
            ValueError: if the model has no tokenizer.
        """
        if model.tokenizer is None:
            raise ValueError(NO_TOKENIZER)
        return cls(
            network=model.network.eval(),
            tokenizer=model.tokenizer,
            answers=model.answers,
            dtype=model.dtype,
            **options,
        )

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.network.parameters()).device

    @property
    def image_text(self) -> FiberImageText:
        """The network as an image-text model (coarse stage)."""
        assert isinstance(self.network, FiberImageText)
        return self.network

    @property
    def detector(self) -> FiberDetector:
        """The network as a detector (fine stage)."""
        assert isinstance(self.network, FiberDetector)
        return self.network

    def arithmetic(self) -> torch.autocast:
        """Autocast context of `dtype`; disabled for float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def batches(
        self,
        records: RecordSet,
        batch_type: Literal["image_text", "question", "reasoning", "grounding"],
    ) -> Iterator[tuple[Any, list[Record]]]:
        """Iterate once over all records in order.

        The seed is fixed, so that MLM masks are the same for every model and every run.

        Yields:
            A batch on the model's device and its records.
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
        """Run the image tower below the first fused block, once per distinct image.

        Args:
            images: (B, 3, H, W).
            records: B records of these images.
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
        """Encode images with texts under the batch's mask, as the backbone's `encode_pair`."""
        backbone, mask = self.network.backbone, batch.text_mask
        prefix = self.image_prefix(batch.images, records)
        return backbone.fuse(prefix, backbone.text_prefix(token_ids, mask), mask, wanted=wanted)

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokenize texts: (n, L) int64 ids and (n, L) bool mask, padded to the longest."""
        arrays = self.tokenizer.encode_batch(texts, max_tokens=self.network.config.max_tokens)
        token_ids, mask = np.asarray(arrays["token_ids"]), np.asarray(arrays["text_mask"])
        return (
            torch.from_numpy(token_ids).to(self.device),
            torch.from_numpy(mask).to(self.device),
        )


#: Evaluates one task on all records.
EvalFunction = Callable[[EvalContext, RecordSet], EvalResult]


def by_image(records: RecordSet) -> dict[str, list[Record]]:
    """Group records by their image, in order: {image_id: records}."""
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
    """Compute a metric on all samples and on each group, if the samples have groups.

    Returns:
        {"accuracy": 0.5, "color/accuracy": 0.6, ...}.
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
    """Return the annotation id at the end of a record's key: "vqa_questions_val/17" -> 17."""
    last = key.rpartition("/")[2]
    return int(last) if last.isdigit() else last
