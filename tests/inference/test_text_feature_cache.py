"""Prefixes of prompts are computed once, equal those computed anew, and follow the weights."""

import pytest
import torch

from fiber.config import preset
from fiber.data import Tokenizer
from fiber.inference import text_feature_cache
from fiber.inference.inputs import Inputs
from fiber.inference.text_feature_cache import TextPrefixes
from fiber.models.fiber.detector import FiberDetector

TEXTS = ["a red mug. the laptop", "dog", "a small blue star. a ring. a square"]


@pytest.fixture
def parts():
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(TEXTS * 20, 300)
    config = preset("micro", stage="fine").with_vocabulary(tokenizer.vocab_size)
    network = FiberDetector(config).double().eval()
    inputs = Inputs(config, tokenizer, torch.device("cpu"))
    return network, inputs, TextPrefixes(network, inputs)


@torch.no_grad()
def test_they_are_those_of_the_backbone(parts):
    network, inputs, prefixes = parts
    prefixes.batch(TEXTS[1:])
    found = prefixes.batch(TEXTS)
    texts = inputs.texts(TEXTS)
    wanted = network.backbone.text_prefix(texts.token_ids, texts.text_mask)
    assert torch.equal(found.text_mask, texts.text_mask)
    assert found.offsets == texts.offsets
    assert (found.prefix - wanted)[texts.text_mask].abs().max() <= 1e-12


@torch.no_grad()
def test_a_prompt_is_computed_once(parts, monkeypatch):
    network, _, prefixes = parts
    seen = []
    compute = network.backbone.text_prefix
    monkeypatch.setattr(
        network.backbone,
        "text_prefix",
        lambda ids, mask: seen.append(len(ids)) or compute(ids, mask),
    )
    first = prefixes.batch([TEXTS[0], TEXTS[0], TEXTS[1]])
    again = prefixes.batch([TEXTS[0], TEXTS[0], TEXTS[1]])
    assert seen == [2]
    assert torch.equal(first.prefix, again.prefix)


@torch.no_grad()
def test_they_follow_the_weights(parts):
    network, _, prefixes = parts
    before = prefixes.batch(TEXTS).prefix
    for parameter in network.backbone.text.parameters():
        parameter.add_(0.1)
    after = prefixes.batch(TEXTS).prefix
    assert torch.equal(after, TextPrefixes(*parts[:2]).batch(TEXTS).prefix)
    assert not torch.equal(before, after)


@torch.no_grad()
def test_the_longest_unused_are_forgotten(parts, monkeypatch):
    _, _, prefixes = parts
    length = int(prefixes.batch([TEXTS[0]]).text_mask.sum())
    monkeypatch.setattr(text_feature_cache, "MAX_KEPT_TOKENS", length)
    prefixes.batch([TEXTS[1]])
    assert list(prefixes._kept) == [TEXTS[1]]
    # What is asked for together is given together, whatever is kept afterwards.
    assert len(prefixes.batch(TEXTS).prefix) == 3
    assert sum(len(row) for row, _ in prefixes._kept.values()) == prefixes._tokens <= length
