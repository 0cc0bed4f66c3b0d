"""Random numbers of training steps."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from fiber.data.batch import Batch
from fiber.losses.distributed import rank, row_counts
from fiber.ops.dropout import by_row


class Place(IntEnum):
    """Computation of a step. A sample has other random numbers in each.

    Numbers are part of every run: they never change. Tasks of other packages use strings.
    """

    #: Layers below the fusion.
    IMAGE = 1
    TEXT = 2
    #: Encoders without fusion, for ITC.
    IMAGE_ALONE = 3
    TEXT_ALONE = 4
    MLM = 5
    ITM = 6
    #: Negatives from the ITC queue, below the fusion.
    QUEUED_IMAGE = 7
    QUEUED_TEXT = 8
    #: All layers, for objectives that share none.
    PAIR = 9
    CAPTION = 10
    #: Sampled captions, and their probabilities.
    SAMPLES = 11
    LOG_PROBS = 12
    RANKING = 13


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
        self, place: Place | str, rows: Tensor, *, is_repeated: bool = False
    ) -> AbstractContextManager[None]:
        """Draw by row within the returned context, if `by_row`; see `fiber.ops.dropout.by_row`."""
        if not self.by_row:
            return nullcontext()
        number = zlib.crc32(place.encode()) if isinstance(place, str) else int(place)
        return by_row((self.seed, self.number, number), rows, is_repeated=is_repeated)

    def within(self, place: Place | str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a function of (rows, *arguments) that calls `function` within `dropout`."""

        def call(rows: Tensor, *arguments: Tensor) -> Tensor:
            with self.dropout(place, rows):
                return function(*arguments)

        return call
