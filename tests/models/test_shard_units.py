"""Every block, layer and head of every family is a unit of FSDP2."""

import pytest
import torch
from torch import nn

from fiber.config import preset
from fiber.models.meter.config import MeterConfig
from fiber.models.registry import build_model
from fiber.models.shard_units import shard_units

CONFIGS = {
    "coarse": preset("base"),
    "fine": preset("base", stage="fine"),
    "METER": MeterConfig(),
    "METER with Swin": MeterConfig(image_encoder="swin"),
    "METER with BERT": MeterConfig(text_encoder="bert"),
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    with torch.device("meta"):
        return build_model(CONFIGS[request.param])


def test_units_hold_nearly_all_parameters_once(model):
    held = [id(p) for unit in shard_units(model) for p in unit.parameters()]
    assert len(held) == len(set(held))
    whole = sum(p.numel() for p in model.parameters())
    inside = sum(p.numel() for p in model.parameters() if id(p) in set(held))
    assert inside > 0.98 * whole
    # None is gathered with a large part of the model.
    sizes = [sum(p.numel() for p in unit.parameters()) for unit in shard_units(model)]
    assert max(sizes) < 0.2 * whole


def test_no_unit_holds_another(model):
    units = list(shard_units(model))
    for unit in units:
        inside = set(unit.modules()) - {unit}
        assert not inside.intersection(units)


def test_methods_that_are_called_from_outside_exist(model):
    for unit in shard_units(model):
        for name in getattr(unit, "extra_forwards", ()):
            assert callable(getattr(unit, name))


def test_a_model_without_units():
    assert list(shard_units(nn.Sequential())) == []
    assert list(shard_units(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))) == []
