import dataclasses
import math

import pytest
import torch
from torch import nn

from fiber.config import preset
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.init import fan_in_std


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
            torch.randn(1, 3, 96, 96), token_ids, torch.ones_like(token_ids, dtype=torch.bool)
        )
    tokens = nn.functional.normalize(fused.text[0], dim=-1)
    likeness = (tokens @ tokens.T).triu(1).sum() / (9 * 8 / 2)
    # It is 0.999 if every linear layer starts with a gain of 1.
    assert likeness < 0.7
