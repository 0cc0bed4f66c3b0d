"""Configs of files whose stored config is that of the published code, or of no code."""

import dataclasses

import pytest
import torch

from fiber.checkpoints.published import published_state
from fiber.models.meter.image_text import MeterImageText
from fiber.models.meter.infer_config import meter_config
from tests.golden import METER
from tests.parity.meter_case import MeterCase


def state_of(**changes):
    """A published file's tensors and config: text and fusion of different widths."""
    config = MeterCase(METER / "clip_micro.json").meter_config("vqa")
    text = dataclasses.replace(config.roberta, width=128, num_heads=2)
    cross = dataclasses.replace(config.cross, width=96, num_heads=3)
    config = dataclasses.replace(config, roberta=text, cross=cross, **changes)
    with torch.device("meta"):
        return published_state(MeterImageText(config)), config


def test_stored_heads_are_those_of_the_fusion():
    state, config = state_of()
    found = meter_config(state, {"num_heads": 3, "hidden_size": 96, "tokenizer": "roberta-base"})
    assert (found.cross.num_heads, found.roberta.num_heads) == (3, 2)
    assert found.cross.num_heads == config.cross.num_heads


def test_heads_that_nothing_tells():
    state, _ = state_of()
    with pytest.raises(
        ValueError, match="num_heads: expected cross-modal channels divisible by 64"
    ):
        meter_config(state, {})
    with pytest.raises(ValueError, match="num_heads must divide width, got 5 and 96"):
        meter_config(state, {"num_heads": 5})


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("patch_size", 32, 16),
        ("hidden_size", 768, 96),
        ("num_top_layer", 6, 2),
        ("vocab_size", 30522, 128),
        ("vqav2_label_size", 3129, 23),
    ],
)
def test_a_stored_size_that_contradicts_the_tensors(name, value, found):
    state, _ = state_of()
    message = f"{name} {value}, but the tensors have {found}"
    with pytest.raises(ValueError, match=message):
        meter_config(state, {"num_heads": 3, name: value})
