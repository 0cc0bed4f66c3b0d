"""Arguments of `DataLoader` and `Collator` of another type: errors that name them."""

import inspect
import re

import numpy as np
import pytest
import torch

from fiber.data import Collator, DataLoader, Tokenizer
from tests.data.loader_records import CROP, RECORDS, TEXT, make


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 300)


@pytest.mark.parametrize(
    "options",
    [
        *({name: "4"} for name in ("batch_size", "prefetch", "threads", "seed", "rank", "keep")),
        *({name: True} for name in ("batch_size", "max_tokens", "world_size")),
        {"max_tokens": "8"},
        {"tokenizer": None},
        {"transform": None},
        {"transform": "squash"},
        {"mlm_probability": "x"},
        {"mlm_probability": None},
        {"answers": 5},
        {"answers": "yes"},
        {"answers": ("yes", 1)},
        {"batch_type": None},
        {"accept_truncated": "no"},
        {"image_dtype": torch.float16},
        {"channels_last": 1},
        *({"background": it} for it in ("red", 255, (1, 2), (0, 0, 256), (-1, 0, 0), (0.5, 0, 0))),
        {"shuffle": "no"},
        {"drop_last": None},
        {"pin_memory": "no"},
    ],
    ids=str,
)
def test_wrong_types_are_named(tokenizer, options):
    ((name, value),) = options.items()
    expected = f"^{name} is {re.escape(repr(value))}; expected "
    usual = {"batch_type": "image_text", "tokenizer": tokenizer, "transform": CROP}
    usual["max_tokens"] = 8
    if name in inspect.signature(Collator).parameters:
        with pytest.raises(TypeError, match=expected):
            Collator(**{**usual, **options})
    if name in inspect.signature(DataLoader).parameters:
        with pytest.raises(TypeError, match=expected):
            DataLoader(RECORDS, **{**usual, "batch_size": 2, **options})


def test_wrong_types_of_positions_are_named(tokenizer):
    loader = make(tokenizer)
    for call in (loader.set_epoch, loader.epoch):
        with pytest.raises(TypeError, match=r"epoch.*1\.5.*whole"):
            call(1.5)
    with pytest.raises(TypeError, match=r"start.*'1'.*whole"):
        loader.stream("1")
    with pytest.raises(ValueError, match=r"epoch.*-1.*0"):
        loader.epoch(-1)
    late = {**loader.state_dict(), "epoch": 1 << 64}
    for call in (loader.set_epoch, loader.epoch, lambda _: loader.load_state_dict(late)):
        with pytest.raises(ValueError, match=f"epoch.*{1 << 64}.*2\\^64"):
            call(1 << 64)


def test_whole_numbers_and_switches_of_numpy_are_taken(tokenizer):
    options = {"batch_size": np.int64(3), "shuffle": np.bool_(False), "seed": np.uint8(4)}
    assert len(next(make(tokenizer, mlm_probability=np.float32(0.5), **options).epoch())) == 3
