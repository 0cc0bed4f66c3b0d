import dataclasses
import math

import pytest
import torch
from torch import nn

from fiber.config import preset
from fiber.models.image_text import FiberImageText


@pytest.mark.parametrize("start", ["published", "fan_in"])
def test_linear_weights_start_as_named(start):
    torch.manual_seed(0)
    config = dataclasses.replace(preset("small"), weight_start=start)
    checked = 0
    for name, part in FiberImageText(config).named_modules():
        if isinstance(part, nn.Linear) and part.weight.numel() > 4000:
            expected = 0.02 if start == "published" else part.in_features**-0.5
            # The sample's own error is 1 / sqrt(2n); four of it are allowed.
            error = expected * 4 / math.sqrt(2 * part.weight.numel())
            assert abs(part.weight.std().item() - expected) < error, name
            checked += 1
    assert checked > 40


def test_small_fine_models_keep_the_coarse_windows():
    coarse, fine = preset("small"), preset("small", stage="fine")
    assert fine.fusion.shift_small_maps == coarse.fusion.shift_small_maps is False
    assert preset("base", stage="fine").fusion.shift_small_maps is True
