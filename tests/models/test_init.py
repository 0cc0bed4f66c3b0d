import dataclasses
import math

import pytest
import torch
from torch import nn

from fiber.config import preset
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.init import fan_in_std, standardize_output

pytestmark = pytest.mark.oldest


@pytest.mark.parametrize("start", ["published", "fan_in"])
def test_linear_weights_follow_the_named_initialization(start):
    torch.manual_seed(0)
    config = dataclasses.replace(preset("small"), weight_start=start)
    checked = 0
    for name, part in FiberImageText(config).named_modules():
        if isinstance(part, nn.Linear) and part.weight.numel() > 4000:
            expected = 0.02 if start == "published" else fan_in_std(part.in_features)
            # Allow four standard errors; the relative standard error is 1 / sqrt(2n).
            error = expected * 4 / math.sqrt(2 * part.weight.numel())
            assert abs(part.weight.std().item() - expected) < error, name
            checked += 1
    assert checked > 40


def test_small_fine_models_keep_coarse_windows():
    coarse, fine = preset("small"), preset("small", stage="fine")
    assert fine.fusion.shift_small_maps == coarse.fusion.shift_small_maps is False
    assert preset("base", stage="fine").fusion.shift_small_maps is True


def test_new_model_keeps_tokens_distinct():
    torch.manual_seed(0)
    model = FiberImageText(preset("small")).eval()
    token_ids = torch.randint(4, 500, (1, 9))
    with torch.no_grad():
        fused = model.backbone.encode_pair(
            torch.randn(1, 3, 64, 64), token_ids, torch.ones_like(token_ids, dtype=torch.bool)
        )
    tokens = nn.functional.normalize(fused.text[0], dim=-1)
    likeness = (tokens @ tokens.T).triu(1).sum() / (9 * 8 / 2)
    # It is 0.999 if every linear layer starts with a gain of 1.
    assert likeness < 0.7


def test_standardized_outputs_are_centered():
    torch.manual_seed(0)
    layer = nn.Linear(5, 3, dtype=torch.float64)
    inputs = (torch.randn(40, 5) * 0.1 + torch.randn(5)).double()
    std = layer(inputs).std()
    before = layer(inputs)
    standardize_output(layer, inputs)
    after = layer(inputs)
    torch.testing.assert_close(after.mean(0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(after, (before - before.mean(0)) / std)


def test_embeddings_of_a_new_model_differ_after_the_initialization():
    torch.manual_seed(0)
    model = FiberImageText(preset("small")).eval()
    images, token_ids = torch.randn(16, 3, 64, 64), torch.randint(4, 500, (16, 9))
    mask = torch.ones_like(token_ids, dtype=torch.bool)

    def likeness():
        """Mean cosine similarity of different images and of different texts."""
        with torch.no_grad():
            vectors = model.embed_images(images), model.embed_texts(token_ids, mask)
        return [((each @ each.T).sum() - 16).item() / (16 * 15) for each in vectors]

    assert min(likeness()) > 0.25 and max(likeness()) > 0.6
    model.init_embeddings(images, token_ids, mask)
    assert max(likeness()) < 0.1


def test_answers_start_at_their_frequencies():
    model = FiberImageText(preset("small"))
    priors = torch.linspace(0, 0.5, model.config.num_answers)
    model.init_answer_priors(priors)
    model.vqa_head.output.weight.data.zero_()
    probabilities = model.vqa_logits(torch.randn(1, 2 * model.config.roberta.width))[0].sigmoid()
    # Answers that never occur get a small probability.
    torch.testing.assert_close(probabilities, priors.clamp(min=1e-4))


@pytest.mark.parametrize("start", ["published", "fan_in"])
def test_pyramid_levels_start_close_to_their_own_maps(start):
    torch.manual_seed(0)
    config = dataclasses.replace(preset("small", stage="fine"), weight_start=start)
    pyramid = FiberDetector(config).pyramid
    maps = [torch.randn(2, c, 8 // s, 8 // s) for c, s in ((40, 1), (80, 2), (160, 4))]
    with torch.no_grad():
        own = pyramid.laterals[0](maps[0])
        likeness = nn.functional.cosine_similarity(pyramid(maps)[0], own, dim=1).mean()
    assert (likeness > 0.6) == (start == "fan_in")
