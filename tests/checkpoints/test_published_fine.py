import json

import pytest
import torch

from fiber.checkpoints.published import load_published, published_state
from fiber.config import preset
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.keys import fine_keys
from tests.golden import KEYS

CONFIG = preset("micro", stage="fine")


def model(seed=0):
    torch.manual_seed(seed)
    return FiberDetector(CONFIG)


def test_every_tensor_has_a_published_name():
    assert set(fine_keys(CONFIG)) == set(model().state_dict())


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        ("tower.blocks.0.coarser.weight", "rpn.head.dyhead_tower.0.DyConv.0.conv.weight"),
        ("tower.blocks.0.same.norm.bias", "rpn.head.dyhead_tower.0.DyConv.1.bn.bias"),
        ("tower.blocks.0.finer.bias", "rpn.head.dyhead_tower.0.DyConv.2.conv.bias"),
        ("stage_norms.2.weight", "fusion_backbone.backbone.body.norm3.weight"),
        ("pyramid.laterals.0.bias", "fusion_backbone.backbone.fpn.fpn_inner2.bias"),
        ("pyramid.outputs.2.bias", "fusion_backbone.backbone.fpn.fpn_layer4.bias"),
        ("head.text_bias", "rpn.head.bias_lang"),
        ("head.bias", "rpn.head.bias0"),
        ("head.level_scales.4", "rpn.head.scales.4.scale"),
    ],
)
def test_same_shape_tensors_map_to_the_right_names(ours, published):
    assert fine_keys(CONFIG)[ours] == (published,)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_round_trip_is_exact(prefix):
    source, target = model(0), model(1)
    state = {f"{prefix}{name}": tensor for name, tensor in published_state(source).items()}
    ignored = load_published(target, state)
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name]), name
    assert len(ignored) == sum(CONFIG.swin.depths) + 1 + 5
    assert all("buffer" in reason for reason in ignored.values())


def test_missing_key_is_named():
    state = published_state(model())
    del state["rpn.head.bias_lang"]
    with pytest.raises(ValueError, match=r"missing rpn\.head\.bias_lang"):
        load_published(model(), state)


def test_unknown_key_is_named():
    state = published_state(model()) | {"rpn.head.extra": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"unknown rpn\.head\.extra"):
        load_published(model(), state)


def test_wrong_shape_is_named():
    state = published_state(model())
    state["rpn.head.centerness.weight"] = torch.zeros(1, 5, 1, 1)
    with pytest.raises(ValueError, match=r"rpn\.head\.centerness\.weight has shape \(1, 5\)"):
        load_published(model(), state)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_base_names_shapes_and_dtypes_match_the_published_ones(version):
    keys = json.loads((KEYS / "fine_keys.json").read_text())
    expected = keys["base_v2"] | (keys["v3_extra"] if version == "v3" else {})
    with torch.device("meta"):
        detector = FiberDetector(preset("base").fine(version=version, max_tokens=256))
        state = published_state(detector)
    found = {n: [list(t.shape), str(t.dtype).removeprefix("torch.")] for n, t in state.items()}
    assert found == expected
    assert len(found) == (806 if version == "v2" else 818)
