"""Losses are computed in float32, or in float64 where the model is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fiber.losses.caption import gold_loss, self_critical_loss
from fiber.losses.itc import itc_loss, queue_itc_loss
from fiber.losses.itc_queue import PairQueue
from fiber.losses.itm import pair_loss
from fiber.losses.mlm import mlm_loss
from fiber.losses.nlvr2 import nlvr2_loss
from fiber.losses.vqa import vqa_loss

pytestmark = pytest.mark.oldest

ROWS = torch.arange(4)
MASK = torch.ones(4, 6, dtype=torch.bool)
IDS = torch.arange(24).reshape(4, 6) % 7


def _contrast(logits: Tensor) -> Tensor:
    return itc_loss(logits, logits.flip(1), torch.tensor(0.07), ROWS)[0]


def _queued(logits: Tensor) -> Tensor:
    queue = PairQueue(8, width=2, image_size=(2, 2), max_tokens=6)
    images = torch.ones(4, 3, 2, 2, dtype=logits.dtype)
    queue.enqueue(logits, logits.flip(0), images, IDS, MASK, ROWS - 9, ROWS - 9)
    return queue_itc_loss(logits, logits.flip(1), torch.tensor(0.07), ROWS, ROWS, queue)[0]


LOSSES: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "masked words": ((4, 2), lambda logits: mlm_loss(logits, ROWS % 2)),
    "statements": ((4, 2), lambda logits: nlvr2_loss(logits, ROWS % 2)),
    "answers": ((4, 2), lambda logits: vqa_loss(logits, torch.full((4, 2), 0.25))),
    "pairs": ((4, 2), lambda logits: pair_loss(logits, ROWS % 2)),
    "contrast": ((4, 2), _contrast),
    "contrast with a queue": ((4, 2), _queued),
    "captions": ((4, 6, 7), lambda logits: gold_loss(logits, logits.detach(), IDS, MASK)),
    "samples": (
        (2, 2, 6),
        lambda logits: self_critical_loss(
            logits.log_softmax(-1), MASK.reshape(2, 2, 6), torch.ones(2, 2)
        ),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_double_precision_stays_and_half_becomes_single(name):
    shape, loss = LOSSES[name]
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = loss(logits)
    assert exact.dtype == torch.float64
    single = loss(logits.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-6)
    # Rounding the logits to half precision is all that half precision costs.
    rounded = logits.bfloat16()
    assert torch.equal(loss(rounded), loss(rounded.float()))
