"""Layers that have adapters, names of tensors, and merging."""

import sys

import pytest
import torch
from torch import nn

from fiber.models.architecture import Architecture
from fiber.models.lora import (
    PREFIX,
    adapter_tensors,
    adapters_of,
    add_adapters,
    build_empty_like,
    file_name_of,
    find_new_modules,
    find_targets,
    import_peft,
    lora_config,
    merged_state,
)
from fiber.models.registry import build_empty
from tests.models.small_networks import NETWORKS, heads, network

pytestmark = pytest.mark.oldest


@pytest.fixture(scope="module")
def coarse():
    return network("coarse")


def test_the_import_writes_no_lines(tmp_path, monkeypatch, capsys):
    """PEFT imports torchao, of which torch logs lines that are for the developers of either."""
    (tmp_path / "peft.py").write_text(
        "import logging, warnings\n"
        "logging.getLogger('torchao').warning('is deprecated')\n"
        "warnings.warn('is deprecated', FutureWarning)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    # Set first, so that the module is taken back after the test, even if there was none.
    monkeypatch.setitem(sys.modules, "peft", None)
    del sys.modules["peft"]
    assert import_peft().__file__ == str(tmp_path / "peft.py")
    assert capsys.readouterr() == ("", "")


def test_patterns_that_name_nothing_or_no_linear_layer_are_errors(coarse):
    with pytest.raises(ValueError, match=r"backbone\.image\.stages\.0\.blocks\.0\.attention\.qk'"):
        find_targets(coarse, ["backbone.image.stages.0.blocks.0.attention.qk"])
    with pytest.raises(ValueError, match=r"'qkv'.*did you mean|'qkv'.*expected one of"):
        find_targets(coarse, ["qkv"])
    with pytest.raises(ValueError, match=r"is a Conv2d.*linear"):
        find_targets(coarse, ["backbone.image.patch_embedding.projection"])
    with pytest.raises(ValueError, match=r"vqa_head' is a .*vqa_head\.output"):
        find_targets(coarse, ["vqa_head"])
    # One of several that is wrong is an error, too.
    with pytest.raises(ValueError, match="no module is called 'nothing'"):
        find_targets(coarse, ["backbone.*.qkv", "nothing"])


def test_names_and_patterns_choose_linear_layers(coarse):
    assert find_targets(coarse, ["vqa_head.output"]) == ["vqa_head.output"]
    found = find_targets(coarse, ["backbone.fusion.0.*", "itm_head"])
    assert found[-1] == "itm_head"
    kinds = {name.rpartition(".")[2] for name in found[:-1]}
    assert kinds == {"query", "key_value", "output"}
    assert all(name.startswith("backbone.fusion.0.") for name in found[:-1])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_default_is_every_attention_and_mlp_of_the_backbone(name):
    model = network(name)
    linear = {each for each, module in model.named_modules() if isinstance(module, nn.Linear)}
    of_backbone = {each for each in linear if each.startswith("backbone.")}
    others = of_backbone - set(find_targets(model))
    assert {each.rpartition(".")[2] for each in others} <= {
        *("reduction", "image_transform", "text_transform"),
    }
    beyond = {each.partition(".")[0] for each in set(find_targets(model)) - of_backbone}
    # Decoders of masks are pretrained, too; heads are not.
    assert beyond == ({"decoder", "pixel_decoder"} if "mask" in model.config.heads else set())


def test_a_family_without_a_default_needs_targets(coarse, monkeypatch):
    monkeypatch.setattr(Architecture, "lora_targets", ())
    entry = type("Entry", (), {"lora_targets": (), "title": "toy"})
    monkeypatch.setattr("fiber.models.lora.architecture_of", lambda config: entry)
    with pytest.raises(ValueError, match=r"lora\.targets: toy has no default"):
        find_targets(coarse)
    assert find_targets(coarse, ["itm_head"]) == ["itm_head"]


def test_new_layers_are_trained_in_whole_and_other_tensors_are_errors(coarse):
    assert find_new_modules(coarse, []) == []
    names = ["vqa_head.output.weight", "vqa_head.output.bias", "itm_head.weight"]
    assert find_new_modules(coarse, names) == ["vqa_head.output", "itm_head"]
    gate = next(name for name in coarse.state_dict() if name.endswith(".gate"))
    for name in ("temperature", gate):
        with pytest.raises(ValueError, match=rf"'{name}'.*adapter"):
            find_new_modules(coarse, [name])


def adapted(model, trained=()):
    add_adapters(model, lora_config(find_targets(model), r=2, alpha=6.0, trained=trained))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def test_only_adapters_and_new_layers_are_trained():
    model = adapted(network("fine"), ["head.box_deltas"])
    for name, parameter in model.named_parameters():
        is_own = ".lora_" in name or name.startswith("head.box_deltas.modules_to_save.")
        assert parameter.requires_grad == is_own, name


def test_tensors_have_the_names_of_pefts_files():
    assert file_name_of("a.qkv.base_layer.weight") is None
    assert file_name_of("a.qkv.lora_A.default.weight") == f"{PREFIX}a.qkv.lora_A.weight"
    assert file_name_of("b.modules_to_save.default.bias") == f"{PREFIX}b.bias"
    assert file_name_of("b.original_module.bias") is None
    model = adapted(network("coarse"), ["vqa_head.output"])
    from peft import get_peft_model_state_dict

    expected = {PREFIX + name: each for name, each in get_peft_model_state_dict(model).items()}
    found = adapter_tensors(model.state_dict())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_state_dict_is_merged_without_a_change_of_its_own():
    model = adapted(network("coarse"), ["vqa_head.output"]).eval()
    with torch.no_grad():
        model.get_submodule("vqa_head.output").weight.add_(1)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = model.state_dict()
    merged = merged_state(model.config, given, r=2, alpha=6.0)
    assert all(torch.equal(given[name], tensor) for name, tensor in state.items())
    plain = network("coarse").eval()
    assert merged.keys() == plain.state_dict().keys()
    plain.load_state_dict(merged)
    with torch.no_grad():
        for head, run in heads(model.config).items():
            expected = run(model)
            atol = 1e-5 * expected.abs().max().item()  # As in tests/hf/test_peft.py.
            torch.testing.assert_close(run(plain), expected, rtol=0, atol=atol, msg=head)


def test_an_empty_network_has_the_same_tensors():
    plain = network("METER")
    assert adapters_of(plain) is None
    for model in (plain, adapted(network("METER"), ["itm_head"])):
        empty = build_empty_like(model)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        assert {name: tensor.shape for name, tensor in empty.state_dict().items()} == shapes
        assert all(tensor.is_meta for tensor in empty.state_dict().values())
    assert build_empty(plain.config).state_dict().keys() != shapes.keys()


def test_without_peft_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"fiber-vl\[lora\]"):
        import_peft()
