"""Published names: the mapping is complete, strict, and changes no values."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from fiber.checkpoints.init_from import initialize
from fiber.checkpoints.model_dir import StoredModel
from fiber.checkpoints.published import load_published, published_state
from fiber.config import IMAGE_TEXT_HEADS, FiberConfig, ImageTextConfig, preset
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.fiber.keys import coarse_defaults, coarse_keys, ignored_coarse_key
from tests.golden import COARSE
from tests.parity.coarse_case import CoarseCase
from tests.published_keys import coarse_keys as published_keys

MICRO_CASE = COARSE / "micro.json"


@pytest.fixture(scope="module")
def case() -> CoarseCase:
    return CoarseCase(MICRO_CASE)


@pytest.fixture
def state(case) -> dict[str, Tensor]:
    """Random tensors with the published names and shapes of the recorded micro model."""
    torch.manual_seed(0)
    return {
        name: torch.randn(entry[0])
        for name, entry in case.weights_check.items()
        if not name.startswith("input.")
    }


@pytest.fixture
def model(case) -> FiberImageText:
    return FiberImageText(case.fiber_config())


def test_every_published_key_is_mapped_or_deliberately_skipped():
    published = {name: shape for name, (shape, _) in published_keys().items()}
    heads = ImageTextConfig(heads=IMAGE_TEXT_HEADS)
    config = dataclasses.replace(preset("base"), image_text=heads)
    with torch.device("meta"):
        model = FiberImageText(config)
    own = model.state_dict()
    keys = coarse_keys(config)
    assert set(keys) == set(own)
    named = [name for names in keys.values() for name in names]
    assert len(named) == len(set(named))
    assert set(named) <= set(published)
    left_out = set(published) - set(named)
    assert all(ignored_coarse_key(name, config) for name in left_out)
    # Skipped: 43 buffers and queues; the pooler, 12 norms, 6 gates, 12 projections and 2 copies
    # that are never used.
    assert (len(published), len(left_out)) == (754, 43 + 2 + 12 + 6 + 12 + 2)
    for ours, theirs in keys.items():
        shapes = [published[name] for name in theirs]
        if not shapes[0]:
            assert own[ours].shape == ()
            continue
        assert all(shape == shapes[0] for shape in shapes)
        assert list(own[ours].shape) == [len(shapes) * shapes[0][0], *shapes[0][1:]]


def test_round_trip_is_bit_equal(model, state, case):
    ignored = load_published(model, state)
    back = published_state(model)
    assert set(back) | set(ignored) == set(state)
    assert not set(back) & set(ignored)
    for name, value in back.items():
        assert torch.equal(value, state[name]), name
    assert ignored["rank_output.weight"] == "stale copy of row 1 of the ITM head"
    assert "text_transformer.pooler.dense.weight" in ignored


def test_stacked_tensors_keep_their_order(model, state):
    load_published(model, state)
    layer = model.backbone.text.layers[1].attention.qkv.weight
    name = "text_transformer.encoder.layer.1.attention.self."
    assert torch.equal(layer[:48], state[name + "query.weight"])
    assert torch.equal(layer[48:96], state[name + "key.weight"])
    assert torch.equal(layer[96:], state[name + "value.weight"])


FAULTS = {
    "missing": (lambda s: s.pop("vit_model.norm.bias"), "missing vit_model.norm.bias"),
    "unknown": (
        lambda s: s.update({"vqa_classifier.7.weight": torch.zeros(1)}),
        "unknown vqa_classifier.7.weight",
    ),
    "wrong shape": (
        lambda s: s.update({"itm_score.fc.weight": torch.zeros(3, 96)}),
        r"itm_score.fc.weight has shape \(3, 96\), expected \(2, 96\)",
    ),
}


@pytest.mark.parametrize(("damage", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_mismatches_are_named_and_nothing_is_loaded(model, state, damage, message):
    damage(state)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_published(model, state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_released_checkpoint_is_converted(model, state):
    """It has two tensors from an earlier implementation, and no temperature."""
    del state["temp"]
    state["logit_scale"] = torch.zeros(())
    state["token_type_embeddings.weight"] = torch.zeros(2, 48)
    ignored = load_published(model, state)
    assert {"logit_scale", "token_type_embeddings.weight"} <= set(ignored)
    assert model.temperature.item() == pytest.approx(0.07)
    assert coarse_defaults(model.config, state) == {"temperature": 0.07}


def test_temperature_is_the_only_coarse_default(case, state):
    config = case.fiber_config()
    assert coarse_defaults(config, state) == {}
    assert coarse_defaults(config, []) == {"temperature": 0.07}
    other = dataclasses.replace(config, image_text=ImageTextConfig(heads=("vqa",)))
    assert coarse_defaults(other, []) == {}


@pytest.mark.parametrize("head", IMAGE_TEXT_HEADS)
def test_model_with_one_head_loads_only_its_tensors(case, state, head):
    config = dataclasses.replace(
        case.fiber_config(), image_text=ImageTextConfig(heads=(head,), num_answers=23)
    )
    model = FiberImageText(config)
    ignored = load_published(model, state)
    assert set(coarse_keys(config)) == set(model.state_dict())
    other = "nlvr2_classifier.0.weight" if head != "nlvr2" else "vqa_classifier.0.weight"
    assert "built without a head" in ignored[other]


def micro(stage: str, **changes) -> FiberConfig:
    config = preset("micro")
    return config if stage == "coarse" else config.fine(**changes)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_backbone_is_copied_from_coarse_to_fine(version):
    torch.manual_seed(0)
    coarse = FiberImageText(micro("coarse"))
    for parameter in coarse.parameters():
        parameter.data = torch.randn_like(parameter)
    detector = FiberDetector(micro("fine", version=version))
    fresh = {name: value.clone() for name, value in detector.state_dict().items()}
    report = initialize(detector, StoredModel(network=coarse))
    state, source = detector.state_dict(), coarse.state_dict()
    assert set(report.taken) | set(report.created) == set(state)
    assert set(report.taken) | set(report.dropped) == set(source)
    for name in report.taken:
        assert torch.equal(state[name], source[name]), name
    for name in report.created:
        assert torch.equal(state[name], fresh[name]), name
        assert not name.startswith("backbone.image.") and not name.startswith("backbone.text.")
    query_norms = [name for name in report.dropped if "image_to_text.norm" in name]
    assert len(query_norms) == (6 if version == "v2" else 0)
    assert "backbone.text.layers.3.output_norm.weight" in report.taken
    assert "itm_head.weight" in report.dropped


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_backbone_is_copied_from_fine_to_coarse(version):
    detector = FiberDetector(micro("fine", version=version))
    for parameter in detector.parameters():
        parameter.data = torch.randn_like(parameter)
    coarse = FiberImageText(micro("coarse"))
    report = initialize(coarse, StoredModel(network=detector))
    state, source = coarse.state_dict(), detector.state_dict()
    backbone = {name for name in state if name.startswith("backbone.")}
    norms = {name for name in backbone if "image_to_text.norm" in name}
    assert len(norms) == 6
    assert set(report.taken) == backbone - (norms if version == "v2" else set())
    for name in report.taken:
        assert torch.equal(state[name], source[name]), name
    assert {name.split(".")[0] for name in report.dropped} == {
        *("stage_norms", "pyramid", "tower", "head")
    }


def test_report_is_readable():
    coarse, detector = FiberImageText(micro("coarse")), FiberDetector(micro("fine", version="v2"))
    page = str(initialize(detector, StoredModel(network=coarse)))
    assert page.startswith("taken: ")
    assert "backbone.fusion.*.image_to_text.norm: 6" in page
    assert "vqa_head" in page.split("dropped: ")[1].split("created: ")[0]
    assert len(page.splitlines()) < 60


class Bodiless(torch.nn.Module):
    """A model without a backbone or any tensors."""

    def __init__(self, config):
        super().__init__()
        self.config = config


def test_backbones_of_different_sizes_are_rejected():
    detector = FiberDetector(micro("fine"))
    coarse = FiberImageText(micro("coarse"))
    coarse.backbone.image.patch_embedding.norm.weight = torch.nn.Parameter(torch.zeros(3))
    before = detector.state_dict()["backbone.image.patch_embedding.norm.bias"].clone()
    with pytest.raises(ValueError, match=r"patch_embedding.norm.weight has shape \(3,\).*\(16,\)"):
        initialize(detector, StoredModel(network=coarse))
    assert torch.equal(detector.state_dict()["backbone.image.patch_embedding.norm.bias"], before)
    with pytest.raises(ValueError, match="share no backbone"):
        initialize(detector, StoredModel(network=Bodiless(coarse.config)))
