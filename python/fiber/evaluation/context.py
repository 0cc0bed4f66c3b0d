"""Model interface, context and result of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fiber.checkpoints.provenance import TrainedOn
from fiber.checkpoints.vocabulary.files import NO_TOKENIZER
from fiber.data import DataLoader, Tokenizer
from fiber.data.image_file import DEFAULT_LIMITS, DecodeLimits
from fiber.data.prompts.classes import ClassName
from fiber.data.record import Record
from fiber.evaluation.processes import ONE_PROCESS, EvalProcesses
from fiber.models.abilities import AbilityT, need_ability
from fiber.models.features import BackboneOutput, ImagePrefix, Wanted
from fiber.models.registry import Network, inference_transform

ResultT = TypeVar("ResultT")


@runtime_checkable
class EvalModel(Protocol):
    """Interface of models to evaluate, such as `fiber.inference.Model` and `StoredModel`."""

    @property
    def network(self) -> Network:
        """The network with its config. Evaluation sets it to eval mode."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer. Evaluation raises an error if it is None."""
        ...

    @property
    def answers(self) -> tuple[str, ...]:
        """Answers of the VQA head, in logit order; empty if there is no VQA head."""
        ...

    @property
    def trained_on(self) -> TrainedOn | None:
        """Training data, if known. Evaluating on the training split issues a warning."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype. Dtypes other than float32 use autocast."""
        ...


@runtime_checkable
class EvalStages(Protocol):
    """Interface of models of several stages, such as `fiber.inference.StagedModel`."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads of all stages."""
        ...

    def with_head(self, head: str, asked: str) -> EvalModel:
        """Return the model of the stage with a head; `asked` is named if there is none."""
        ...


@dataclass(frozen=True)
class EvalResult:
    """Metrics and predictions of one task."""

    #: Metrics by name, as fractions in [0, 1], except for `cider_d` (up to 10).
    metrics: dict[str, float]
    #: Predictions in the task's official format: JSON objects or lines of text.
    predictions: list[Any] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """Model to evaluate, and evaluation options."""

    network: Any
    tokenizer: Tokenizer
    #: Name of the task of training that the evaluation belongs to, whose images it transforms.
    task: str | None = None
    answers: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    batch_size: int = 64
    #: Number of data loader threads; 0 uses all cores.
    threads: int = 0
    #: Limits of decoding one image.
    limits: DecodeLimits = DEFAULT_LIMITS
    #: Processes that evaluate together.
    processes: EvalProcesses = ONE_PROCESS
    #: Replace every record's image with that of a different record.
    permute_images: bool = False
    #: If False, the gates of all cross-attention layers are set to 0.
    fusion: bool = True
    #: Number of candidates per retrieval query to rerank with ITM; 0 disables reranking.
    candidates: int = 0
    #: Maximum number of classes per detection prompt; 0 for as many as fit, None for the task's
    #: default.
    classes_per_prompt: int | None = None
    #: Class names to use in detection prompts, in label order; None to use the labels.
    classes: Sequence[ClassName] | None = None

    @classmethod
    def of(cls, model: EvalModel, **options: Any) -> EvalContext:
        """Set a model to eval mode and create its context. `options` set the other fields.

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

    def able(self, ability: type[AbilityT], asked: str, head: str | None = None) -> AbilityT:
        """Return the network as one with an ability, such as `ScoresPairs`.

        See `fiber.models.abilities.need_ability` for arguments and errors.
        """
        return need_ability(self.network, ability, asked, head)

    def run_batches(
        self,
        records: Sequence[Record],
        batch_type: Literal["image_text", "question", "reasoning", "grounding"],
        function: Callable[[Any, list[Record], int], ResultT],
    ) -> Iterator[ResultT]:
        """Yield the result of every batch, in order.

        Args:
            records: records to batch.
            batch_type: class of the batches; see `DataLoader`.
            function: computes the result from a batch on the model's device, its records, and the
                index of the first of them. It is called for the batches of this process; results
                of others are sent, so they must be picklable and on the CPU.

        The seed is fixed, so MLM masks are the same for every model and run.
        """
        loader = DataLoader(
            records,
            batch_type,
            tokenizer=self.tokenizer,
            transform=inference_transform(self.network.config, self.task),
            batch_size=self.batch_size,
            max_tokens=self.network.config.max_tokens,
            threads=self.threads,
            seed=0,
            **self.limits._asdict(),
        )
        own = self.processes.own

        def results() -> Iterator[ResultT]:
            for number, batch in enumerate(loader.epoch(batches=own)):
                at = (own.start + number * own.step) * self.batch_size
                shown = list(records[at : at + len(batch)])
                yield function(batch.to(self.device), shown, at)

        return self.processes.in_order(results())

    def image_prefix(self, images: Tensor, records: Sequence[Record]) -> ImagePrefix:
        """Run the blocks that precede fusion on (B, 3, H, W) images, once per distinct image."""
        first: dict[Any, int] = {}
        for row, record in enumerate(records):
            first.setdefault(record.images, row)
        places = {image: place for place, image in enumerate(first)}
        prefix = self.network.backbone.image_prefix(images[list(first.values())])
        rows = torch.tensor([places[record.images] for record in records], device=images.device)
        return ImagePrefix(prefix.tokens[rows], tuple(stage[rows] for stage in prefix.stages))

    def encode_pair(
        self,
        batch: Any,
        records: Sequence[Record],
        token_ids: Tensor,
        *,
        wanted: Wanted = "all",
    ) -> BackboneOutput:
        """Like the backbone's `encode_pair`, but run the blocks before fusion once per image."""
        backbone, mask = self.network.backbone, batch.text_mask
        prefix = self.image_prefix(batch.images, records)
        return backbone.fuse(prefix, backbone.text_prefix(token_ids, mask), mask, wanted=wanted)

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokenize texts and pad them to the longest one.

        Returns:
            (n, L) int64 ids and an (n, L) bool mask, True = real token.
        """
        arrays = self.tokenizer.encode_batch(texts, max_tokens=self.network.config.max_tokens)
        ids, mask = (np.asarray(arrays[name]) for name in ("token_ids", "text_mask"))
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)


def by_image(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group records by image id, in order of first appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.image_id, []).append(record)
    return groups


def entry_id(key: str) -> int | str:
    """Return the annotation id at the end of a record's key: 17 for "vqa_questions_val/17"."""
    last = key.rpartition("/")[2]
    return int(last) if last.isdigit() else last
