"""Options of `DataLoader` and `Collator`: their types, and errors that name them."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from fiber.data import Collator, DataLoader, Tokenizer
from fiber.data.loader_config import (
    CollatorConfig,
    CollatorOptions,
    LoaderConfig,
    LoaderOptions,
)
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
        {"mlm_seed": "7"},
        {"mlm_seed": True},
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
    if name in {*CollatorOptions.__annotations__, "batch_type", "keep"}:
        with pytest.raises(TypeError, match=expected):
            Collator(**{**usual, **options})
    if name in {*LoaderOptions.__annotations__, "batch_type"}:
        with pytest.raises(TypeError, match=expected):
            DataLoader(RECORDS, **{**usual, "batch_size": 2, **options})


def test_wrong_types_of_positions_are_named(tokenizer):
    loader = make(tokenizer)
    for call in (loader.set_epoch, loader.epoch):
        with pytest.raises(TypeError, match=r"epoch.*1\.5.*integer"):
            call(1.5)
    with pytest.raises(TypeError, match=r"start.*'1'.*integer"):
        loader.stream("1")
    with pytest.raises(ValueError, match=r"epoch.*-1.*0"):
        loader.epoch(-1)
    late = {**loader.state_dict(), "epoch": 1 << 64}
    for call in (loader.set_epoch, loader.epoch, lambda _: loader.load_state_dict(late)):
        with pytest.raises(ValueError, match=f"epoch.*{1 << 64}.*2 .. 64"):
            call(1 << 64)


def test_whole_numbers_and_switches_of_numpy_are_taken(tokenizer):
    options = {"batch_size": np.int64(3), "shuffle": np.bool_(False), "seed": np.uint8(4)}
    assert len(next(make(tokenizer, mlm_probability=np.float32(0.5), **options).epoch())) == 3


@pytest.mark.parametrize(
    ("options", "config"),
    [(CollatorOptions, CollatorConfig), (LoaderOptions, LoaderConfig)],
)
def test_typed_options_are_those_of_the_config(options, config):
    fields = {field.name: field for field in dataclasses.fields(config)}
    del fields["batch_type"]
    assert options.__annotations__.keys() == fields.keys()
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    assert {name for name, kind in options.__annotations__.items() if "Required" in str(kind)} == (
        required
    )


def test_unknown_and_missing_options_are_named(tokenizer):
    usual = {"tokenizer": tokenizer, "transform": CROP, "max_tokens": 8}
    with pytest.raises(TypeError, match="batch_sise"):
        DataLoader(RECORDS, "image_text", batch_size=2, batch_sise=2, **usual)
    with pytest.raises(TypeError, match="'keep'"):
        DataLoader(RECORDS, "image_text", batch_size=2, keep=2, **usual)
    with pytest.raises(TypeError, match="'batch_size'"):
        DataLoader(RECORDS, "image_text", **usual)
    with pytest.raises(TypeError, match="'batch_size'"):
        Collator("image_text", batch_size=2, **usual)
    with pytest.raises(TypeError, match="'tokenizer'"):
        Collator("image_text", transform=CROP, max_tokens=8)


def test_options_are_attributes(tokenizer):
    loader = make(tokenizer, answers=["yes"], seed=5)
    assert loader.config.answers == loader.answers == ("yes",)
    assert (loader.seed, loader.threads) == (5, loader.config.threads)
    with pytest.raises(AttributeError, match="batch_sise"):
        _ = loader.batch_sise
