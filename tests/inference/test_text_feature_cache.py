"""Prefixes of prompts are computed once, equal those computed anew, and follow the weights."""

import pytest
import torch

from fiber.config import preset
from fiber.data import Tokenizer
from fiber.data.prompts.classes import Prompt, class_prompt
from fiber.inference import text_feature_cache
from fiber.inference.tensor_inputs import Inputs
from fiber.inference.text_feature_cache import TextPrefixes
from fiber.models.fiber.detector import FiberDetector

PROMPTS = [
    class_prompt(names)
    for names in (["a red mug", "the laptop"], ["dog"], ["a small blue star", "a ring", "a square"])
]
TEXTS = [prompt.text for prompt in PROMPTS]


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
    prefixes.batch(PROMPTS[1:])
    found = prefixes.batch(PROMPTS)
    texts = inputs.texts(TEXTS)
    wanted = network.backbone.text_prefix(texts.token_ids, texts.text_mask)
    assert torch.equal(found.text_mask, texts.text_mask)
    maps = [p.token_map(offsets) for p, offsets in zip(PROMPTS, texts.offsets, strict=True)]
    assert found.token_maps == maps
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
    first = prefixes.batch([PROMPTS[0], PROMPTS[0], PROMPTS[1]])
    again = prefixes.batch([PROMPTS[0], PROMPTS[0], PROMPTS[1]])
    assert seen == [2]
    assert torch.equal(first.prefix, again.prefix)


@torch.no_grad()
def test_they_follow_the_weights(parts):
    network, _, prefixes = parts
    before = prefixes.batch(PROMPTS).prefix
    for parameter in network.backbone.text.parameters():
        parameter.add_(0.1)
    after = prefixes.batch(PROMPTS).prefix
    assert torch.equal(after, TextPrefixes(*parts[:2]).batch(PROMPTS).prefix)
    assert not torch.equal(before, after)


class Scaled(torch.nn.Module):
    """An adapter of another package, which can be switched off."""

    scale = 2.0

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, ids):
        return self.base(ids) * self.scale


@torch.no_grad()
@pytest.mark.parametrize("kind", ["hook", "adapter"])
def test_they_follow_what_is_hooked_and_adapted(parts, kind):
    network, _, prefixes = parts
    embeddings = network.backbone.text.embeddings
    before = prefixes.batch(PROMPTS).prefix
    if kind == "hook":
        handle = embeddings.word.register_forward_hook(lambda _, ids, output: output * 2)
    else:
        embeddings.word = Scaled(embeddings.word)
    on = prefixes.batch(PROMPTS).prefix
    assert torch.equal(on, TextPrefixes(*parts[:2]).batch(PROMPTS).prefix)
    if kind == "hook":
        handle.remove()
    else:
        embeddings.word.scale = 1.0
    assert not torch.equal(on, before)
    assert torch.equal(prefixes.batch(PROMPTS).prefix, before)


@torch.no_grad()
def test_the_longest_unused_are_forgotten(parts, monkeypatch):
    _, _, prefixes = parts
    length = int(prefixes.batch([PROMPTS[0]]).text_mask.sum())
    monkeypatch.setattr(text_feature_cache, "MAX_KEPT_TOKENS", length)
    prefixes.batch([PROMPTS[1]])
    assert [text for text, _ in prefixes._kept] == [TEXTS[1]]
    # What is asked for together is given together, whatever is kept afterwards.
    assert len(prefixes.batch(PROMPTS).prefix) == 3
    assert sum(len(row) for row, _ in prefixes._kept.values()) == prefixes._tokens <= length


@torch.no_grad()
def test_a_text_with_other_labels_has_a_token_map_of_its_own(parts):
    _, inputs, prefixes = parts
    mug, laptop = (
        Prompt(TEXTS[0], (label,), (span,))
        for label, span in zip(PROMPTS[0].labels, PROMPTS[0].spans, strict=True)
    )
    found = prefixes.batch([mug, laptop, mug])
    (offsets,) = inputs.texts([TEXTS[0]]).offsets
    assert found.token_maps == [prompt.token_map(offsets) for prompt in (mug, laptop, mug)]
    assert found.token_maps[0] != found.token_maps[1]
