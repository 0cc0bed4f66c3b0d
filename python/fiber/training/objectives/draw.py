"""Random numbers of training steps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import IntEnum, auto

import torch
from torch import Tensor

from fiber.data.batch import Batch
from fiber.losses.distributed import rank, row_counts
from fiber.ops.dropout import by_row


class Place(IntEnum):
    """Computation of a step. A sample has other random numbers in each."""

    #: Layers below the fusion.
    IMAGE = auto()
    TEXT = auto()
    #: Encoders without fusion, for ITC.
    IMAGE_ALONE = auto()
    TEXT_ALONE = auto()
    MLM = auto()
    ITM = auto()
    #: Negatives from the ITC queue, below the fusion.
    QUEUED_IMAGE = auto()
    QUEUED_TEXT = auto()
    #: All layers, for objectives that share none.
    PAIR = auto()
    CAPTION = auto()
    #: Sampled captions, and their probabilities.
    SAMPLES = auto()
    LOG_PROBS = auto()
    RANKING = auto()


@dataclass(frozen=True)
class Draw:
    """Key of a micro-batch's random numbers: the run's seed and the micro-batch's index.

    It is the same on every rank. With `by_row`, it is the key of dropout and stochastic depth, too,
    which otherwise come from the generator of the rank.
    """

    seed: int
    number: int
    by_row: bool = False

    def rows(self, batch: Batch) -> Tensor:
        """Return (B,) int64 numbers of samples, with `by_row` those in the batch of all ranks."""
        rows = torch.arange(len(batch), device=batch.token_ids.device)
        if not self.by_row:
            return rows
        return rows + sum(row_counts(rows)[: rank()])

    def dropout(
        self, place: Place, rows: Tensor, *, is_repeated: bool = False
    ) -> AbstractContextManager[None]:
        """Draw by row within the returned context, if `by_row`; see `fiber.ops.dropout.by_row`."""
        if not self.by_row:
            return nullcontext()
        return by_row((self.seed, self.number, place), rows, is_repeated=is_repeated)

    def within(self, place: Place, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a function of (rows, *arguments) that calls `function` within `dropout`."""

        def call(rows: Tensor, *arguments: Tensor) -> Tensor:
            with self.dropout(place, rows):
                return function(*arguments)

        return call
