import math

import pytest
import torch
from torch import nn

from fiber.config import PRESETS, preset
from fiber.config_io import to_dict
from fiber.models.fiber.parameter_parts import COARSE_PARTS, FINE_PARTS
from fiber.models.registry import build_model
from fiber.training.config.run import OptimConfig
from fiber.training.optim import (
    MovingAverage,
    MuonAdamW,
    PublishedAdamW,
    build_optimizer,
    freeze,
    lr_factor,
    set_learning_rate,
)
from fiber.training.optim.parameter_groups import (
    factor_of,
    is_backbone_matrix,
    is_decayed,
    kind_of,
    part_of,
)

pytestmark = pytest.mark.oldest

SIDES = ("image_to_text", "text_to_image")


@pytest.fixture(scope="module", params=["coarse", "fine"])
def model(request):
    with torch.device("meta"):
        return build_model(preset("micro", stage=request.param))


def test_every_trainable_parameter_is_in_exactly_one_group(model):
    optimizer = build_optimizer(model, OptimConfig())
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}


def test_networks_name_their_parts():
    parts = {"new_head": "head", "backbone.mixed": "cross_modal", "backbone": "encoder"}
    assert part_of("new_head.weight", parts) == "head"
    assert part_of("backbone.mixed.weight", parts) == "cross_modal"
    assert part_of("backbone.mixed_too.weight", parts) == "encoder"
    with pytest.raises(ValueError, match=r"'new_head_too\.weight' is not in.*'new_head_too' to"):
        part_of("new_head_too.weight", parts)
    network = torch.nn.ModuleDict({"new_head": torch.nn.Linear(2, 2, bias=False)})
    with pytest.raises(ValueError, match=r"'new_head\.weight' is not in"):
        build_optimizer(network, OptimConfig())
    network.parts = parts
    (group,) = build_optimizer(network, OptimConfig(head_lr_multiplier=7.0)).param_groups
    assert group["lr_factor"] == 7.0


def test_networks_name_what_their_published_code_decays():
    published = {"*.first.weight": False, "*": True}
    matrix, vector = torch.empty(2, 2), torch.empty(2)
    for optim in (OptimConfig(published_decay=True), OptimConfig(published_coarse=True)):
        assert not is_decayed("head.first.weight", matrix, optim, published)
        assert is_decayed("head.second.bias", vector, optim, published)
        assert is_decayed("head.weight", matrix, optim) and not is_decayed("bias", vector, optim)
    assert is_decayed("head.first.weight", matrix, OptimConfig(), published)
    assert not is_decayed("head.second.bias", vector, OptimConfig(), published)


def test_the_decay_of_runs_without_it_is_not_stored():
    assert "published_decay" not in to_dict(OptimConfig())
    assert to_dict(OptimConfig(published_decay=True))["published_decay"]


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_of_every_preset_have_a_part(name):
    for config in (preset(name), preset(name, stage="fine")):
        with torch.device("meta"):
            network = build_model(config)
        for parameter, _ in network.named_parameters():
            part_of(parameter, network.parts)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("backbone.image.stages.0.blocks.0.mlp.0.weight", "encoder"),
        ("backbone.text.embeddings.word.weight", "encoder"),
        ("backbone.fusion.0.image_to_text.query.weight", "cross_modal"),
        ("backbone.fusion.0.text_to_image.gate", "cross_modal"),
        ("text_pooler.linear.weight", "cross_modal"),
        ("caption_projections.0.weight", "cross_modal"),
        ("language_head.decoder.weight", "head"),
        ("vqa_head.hidden.weight", "head"),
        ("temperature", "encoder"),
        ("itc_image_norm.weight", "encoder"),
        ("tower.blocks.0.offset.weight", "head"),
    ],
)
def test_parts(name, part):
    parts = FINE_PARTS if name.startswith("tower") else COARSE_PARTS
    assert part_of(name, parts) == part


def test_no_bias_norm_or_gate_is_decayed_by_default(model):
    norms = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm))
    }
    seen = set()
    for name, parameter in model.named_parameters():
        kind = kind_of(name, parameter)
        seen.add(kind)
        small = "bias" in name or name in norms or name.endswith("gate") or parameter.ndim < 2
        assert is_decayed(name, parameter, OptimConfig()) == (not small), name
        # The published fine stage decays norms, but no bias.
        decays_more = is_decayed(name, parameter, OptimConfig(decay_vectors=True))
        assert decays_more == (kind != "bias"), name
    assert seen == {"weight", "bias", "vector", "gate"}


def test_factors_of_the_published_coarse_stage():
    config = OptimConfig(head_lr_multiplier=50.0, cross_modal_lr_multiplier=5.0)
    matrix, vector = torch.empty(2, 2), torch.empty(2)
    assert factor_of("backbone.text.layers.0.mlp.0.weight", matrix, config, COARSE_PARTS) == 1
    assert (
        factor_of("backbone.fusion.1.text_to_image.output.bias", vector, config, COARSE_PARTS) == 5
    )
    assert factor_of("vqa_head.output.weight", matrix, config, COARSE_PARTS) == 50


def test_factors_of_the_published_fine_stage():
    config = OptimConfig(
        head_lr_multiplier=1.0,
        cross_modal_lr_multiplier=1.0,
        text_lr_multiplier=0.1,
        bias_lr_multiplier=2.0,
    )
    matrix, vector = torch.empty(2, 2), torch.empty(2)
    names = {
        ("backbone.image.stages.0.blocks.0.mlp.0.weight", matrix): 1.0,
        ("backbone.image.stages.0.blocks.0.attention.bias_table", matrix): 2.0,
        ("backbone.fusion.0.image_to_text.gate", vector): 1.0,
        ("backbone.fusion.0.text_to_image.gate", vector): 0.1,
        ("backbone.text.layers.0.mlp.0.bias", vector): 0.2,
        ("head.text_bias", vector): 2.0,
        ("head.box_deltas.weight", matrix): 1.0,
    }
    for (name, parameter), expected in names.items():
        assert factor_of(name, parameter, config, FINE_PARTS) == pytest.approx(expected), name


def test_decay_of_the_published_coarse_code():
    with torch.device("meta"):
        coarse = build_model(preset("micro"))
    differing = {
        name
        for name, parameter in coarse.named_parameters()
        if is_decayed(name, parameter, OptimConfig(published_coarse=True), coarse.published_decay)
        != is_decayed(name, parameter, OptimConfig())
    }
    pairs = coarse.config.fusion.num_fused_layers
    assert differing == {
        "temperature",
        "vqa_head.norm.weight",
        "nlvr2_head.norm.weight",
        *(f"backbone.fusion.{n}.{side}.gate" for n in range(pairs) for side in SIDES),
        *(f"backbone.fusion.{n}.image_to_text.norm.weight" for n in range(pairs)),
    }


def test_published_adamw_by_hand():
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    idle = torch.nn.Parameter(torch.ones(1))
    groups = [{"params": [parameter, idle], "lr_factor": 1.0, "weight_decay": 0.1}]
    optimizer = PublishedAdamW(groups, lr=0.01, betas=(0.9, 0.98), eps=1e-3)
    values, first, second = [1.0, -2.0, 0.5], [0.0] * 3, [0.0] * 3
    for step, gradients in enumerate(([0.5, -1.0, 0.0], [1.0, 2.0, 1e-4]), start=1):
        parameter.grad = torch.tensor(gradients)
        optimizer.step()
        for i, g in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.98 * second[i] + 0.02 * g * g
            size = 0.01 * math.sqrt(1 - 0.98**step) / (1 - 0.9**step)
            values[i] -= size * first[i] / (math.sqrt(second[i]) + 1e-3)
            values[i] -= 0.01 * 0.1 * values[i]
        assert parameter.tolist() == pytest.approx(values, rel=1e-6)
    # Without a gradient nothing happens, not even decay.
    assert idle.item() == 1.0


def test_published_adamw_goes_on_from_its_state():
    def steps(count, state=None):
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.ones(4) if state is None else state[0].clone())
        group = {"params": [parameter], "lr_factor": 1.0, "weight_decay": 0.1}
        optimizer = PublishedAdamW([group], lr=0.1, betas=(0.9, 0.98), eps=1e-8)
        if state is not None:
            optimizer.load_state_dict(state[1])
        for _ in range(count):
            parameter.grad = parameter.detach() + 1
            optimizer.step()
        return parameter.detach(), optimizer.state_dict()

    assert torch.equal(steps(3, steps(2))[0], steps(5)[0])


def test_muon_takes_the_matrices_of_the_backbone(model):
    config = OptimConfig(muon_lr_multiplier=2.0, cross_modal_lr_multiplier=3.0)
    optimizer = build_optimizer(model, config)
    assert isinstance(optimizer, MuonAdamW)
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    grouped = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(names.values())
    by_muon = {
        names[id(p)]: group["lr_factor"]
        for group in optimizer.param_groups
        if group["by_muon"]
        for p in group["params"]
    }
    assert by_muon["backbone.image.stages.0.blocks.0.attention.qkv.weight"] == 2.0
    assert by_muon["backbone.fusion.0.text_to_image.query.weight"] == 6.0
    assert not [name for name in by_muon if "embeddings" in name or "bias" in name]
    assert all(name.startswith("backbone.") for name in by_muon)
    assert set(by_muon) == {n for n, p in model.named_parameters() if is_backbone_matrix(n, p)}


def test_gate_factor_multiplies_that_of_fusion():
    config = OptimConfig(cross_modal_lr_multiplier=5.0, gate_lr_multiplier=4.0)
    assert (
        factor_of("backbone.fusion.0.text_to_image.gate", torch.empty(1), config, COARSE_PARTS)
        == 20
    )


def test_linear_schedule():
    config = OptimConfig(warmup_fraction=0.2)
    factors = [lr_factor(step, 10, config) for step in range(10)]
    assert factors == pytest.approx([0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    # Beyond the last step, where a published run may still ask.
    assert lr_factor(10, 10, config) == lr_factor(11, 10, config) == 0


def test_multistep_schedule_with_a_published_warm_up():
    config = OptimConfig(
        warmup_fraction=0.1, warmup_start=0.001, schedule="multistep", milestones=(0.67, 0.89)
    )
    factors = [lr_factor(step, 100, config) for step in (0, 5, 10, 66, 67, 88, 89, 99)]
    assert factors == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_no_warm_up_starts_at_the_peak():
    assert lr_factor(0, 5, OptimConfig(warmup_fraction=0.0)) == 1.0


def test_learning_rate_reaches_every_group():
    model = build_model(preset("micro"))
    optimizer = build_optimizer(model, OptimConfig(head_lr_multiplier=5, text_lr_multiplier=0.5))
    set_learning_rate(optimizer, 0.01)
    factors = {group["lr_factor"] for group in optimizer.param_groups}
    assert factors == {1.0, 0.5, 2.5, 5.0}
    assert all(group["lr"] == 0.01 * group["lr_factor"] for group in optimizer.param_groups)


def test_moving_average_of_no_updates_is_the_model():
    model = nn.Linear(2, 2)
    weights = MovingAverage(model, 0.9).weights(model)
    assert torch.equal(weights["weight"], model.weight)


def test_moving_average_by_hand_and_through_its_state():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = MovingAverage(model, 0.5)
    expected = 0.0
    for update, value in enumerate((1.0, 3.0, -2.0, 8.0, 5.0, 1.0, 0.5, 2.0, 9.0, 4.0), start=1):
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
        model.weight.data.fill_(value)
        average.update(model)
    assert average.weights(model)["weight"].item() == pytest.approx(expected, rel=1e-6)
    copy = MovingAverage(model, 0.5)
    # As from a checkpoint, whose tensors are read into those of the state.
    for name, tensor in copy.state_dict().items():
        tensor.copy_(average.state_dict()[name])
    copy.updates = average.updates
    for each in (average, copy):
        model.weight.data.fill_(7.0)
        each.update(model)
    assert torch.equal(copy.weights(model)["weight"], average.weights(model)["weight"])


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_is_named_is_frozen():
    model = build_model(preset("micro", stage="fine"))
    everything = trained(model)
    freeze(model, ())
    assert trained(model) == everything
    freeze(model, ("backbone.image.stages.0", "*.mlp_norm.weight", "head.text_bias"))
    frozen = everything - trained(model)
    assert frozen == {
        name
        for name in everything
        if name.startswith("backbone.image.stages.0.")
        or name.endswith(".mlp_norm.weight")
        or name == "head.text_bias"
    }
    average = MovingAverage(model, 0.9)
    assert not frozen & set(average.state_dict())


def test_patterns_that_freeze_nothing_are_named():
    model = build_model(preset("micro", stage="fine"))
    with pytest.raises(ValueError, match=r"called 'backbone.image.stage.0'"):
        freeze(model, ("backbone.text", "backbone.image.stage.0"))
    with pytest.raises(ValueError, match=r"called 'stages.1'"):
        freeze(model, ("stages.1",))
    with pytest.raises(ValueError, match=r"optim.frozen: \* freezes every parameter"):
        freeze(model, ("*",))
