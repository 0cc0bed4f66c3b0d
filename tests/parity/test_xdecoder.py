"""The X-Decoder model equals the recorded one, and a difference of any kind is found."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden import XDECODER
from tests.parity import xdecoder
from tests.parity.__main__ import files_not_compared
from tests.parity.comparison import Comparison
from tests.parity.tolerances import xdecoder_tolerances
from tests.parity.xdecoder_case import XDecoderCase
from tests.parity.xdecoder_losses import compare_groups, compare_losses

pytestmark = pytest.mark.oldest

#: What is compared of a whole model.
GROUPS = {
    *("weight rule", "absolute maxima", "text", "text (integers)", "backbone and pixels"),
    *("attention masks", "segmentation", "final masks", "phrases", "phrases (bits)"),
    *("segments", "panoptic pixels", "instances", "instances (integers)", "instances (bits)"),
    *("ids (integers)", "retrieval", "captions", "caption states"),
    *("training tensors", "matchings", "losses", "gradients"),
}


@pytest.mark.parametrize(
    "name", ["focall_micro", "micro", pytest.param("tiny", marks=pytest.mark.slow)]
)
def test_the_committed_case_equals(name):
    comparison = xdecoder.compare_case(XDECODER / f"{name}.json")
    assert comparison.ok, str(comparison)
    groups = {"weight rule", "absolute maxima", "backbone"} if "focall" in name else GROUPS
    # No instance of tiny is sure enough to be recorded.
    absent = {"instances (integers)", "instances (bits)"} if name == "tiny" else set()
    assert set(comparison.groups) == groups - absent
    assert all(group.count for group in comparison.groups.values())


def test_what_waits_is_named_and_nothing_else():
    cases = ["micro", "tiny", "focall_micro"]
    unread = files_not_compared(XDECODER, cases, xdecoder)
    ends = tuple(xdecoder.PENDING_FILES)
    assert unread and all(name.endswith(ends) for name in unread)
    assert all(any(name.endswith(end) for name in unread) for end in ends)
    assert [path.stem for path in sorted(XDECODER.glob("*.json")) if xdecoder.is_case(path)]


@pytest.fixture(scope="module")
def case():
    return XDecoderCase(XDECODER / "micro.json")


@pytest.fixture(scope="module")
def model(case):
    return case.model()


def changed_names(comparison):
    return {
        failure.split(":")[0] for group in comparison.groups.values() for failure in group.failures
    }


@torch.no_grad()
def test_another_weight_is_found(case, model):
    weight = model.decoder.layers[3].mlp[2].weight
    kept = weight.clone()
    try:
        weight.mul_(1.01)
        comparison = Comparison("changed")
        xdecoder._compare_segments(comparison, case, model, xdecoder.class_vectors(model, case, 1))
    finally:
        weight.copy_(kept)
    changed = changed_names(comparison)
    assert {"decoder.layer3.ffn", "seg.pred4.mask", "seg.image0.mask_logits"} <= changed
    assert not any(name.startswith(("decoder.layer2", "pixel.", "backbone.")) for name in changed)


@torch.no_grad()
def test_flipped_bits_are_counted(case, model):
    bits = xdecoder.recorded_bits(case, "seg")
    own = [each.clone() for each in bits]
    own[2][:40] ^= True
    comparison = Comparison("flipped")
    xdecoder.compare_bits(comparison, case, "seg", own, bits)
    (failure,) = comparison.groups["attention masks"].failures
    assert failure.startswith("seg: error")
    xdecoder.compare_bits(comparison, case, "seg", own[:3], bits)
    assert "masks of other sizes" in comparison.groups["attention masks"].failures[1]


@pytest.mark.parametrize(
    ("removed", "named"),
    [("ground.similarity", "ground.similarity: not recorded"), (None, "unheard: described")],
)
def test_names_that_only_one_file_has(tmp_path, removed, named):
    for path in XDECODER.glob("micro*"):
        shutil.copy(path, tmp_path / path.name)
    path = tmp_path / "micro.json"
    content = json.loads(path.read_text())
    if removed:
        tensors = load_file(path.with_suffix(".safetensors"))
        del content["tensors"][removed], tensors[removed]
        save_file(tensors, path.with_suffix(".safetensors"))
    else:
        content["tensors"]["unheard"] = {"shape": [1], "stride": 1}
    path.write_text(json.dumps(content))
    comparison = xdecoder.compare_case(path)
    (failure,) = comparison.groups["names"].failures
    assert failure.startswith(named)


def test_a_folder_without_the_list_of_texts(tmp_path, case):
    for path in XDECODER.glob("micro*"):
        shutil.copy(path, tmp_path / path.name)
    texts = case.config["phrases"]
    found = XDecoderCase(tmp_path / "micro.json").text(texts)
    assert all(torch.equal(a, b) for a, b in zip(found, case.text(texts), strict=True))


def test_weights_of_an_unknown_deviation():
    with pytest.raises(ValueError, match=r"no tolerance for weights of std 0\.5"):
        xdecoder_tolerances({"weights": {"std": 0.5}})


def test_post_processing_equals_and_names_what_waits():
    comparison = xdecoder.compare_post(XDECODER / "post.json")
    assert comparison.ok, str(comparison)
    assert set(comparison.set_aside) == {"sizes"}
    counts = {name: group.count for name, group in comparison.groups.items()}
    own = {"segments": 3, "post-processing": 9, "post-processing (integers)": 7}
    assert counts == own | {"losses": 7, "metrics": 17}


def test_every_changed_output_of_post_processing_is_found(tmp_path):
    for path in XDECODER.glob("post.*"):
        shutil.copy(path, tmp_path / path.name)
    tensors = load_file(tmp_path / "post.safetensors")
    outputs = [name for name in tensors if name.startswith("post.") and name != "post.low"]
    outputs.remove("post.class_logits")
    for name in outputs:
        tensors[name].view(-1)[3] += 1
    save_file(tensors, tmp_path / "post.safetensors")
    comparison = xdecoder.compare_post(tmp_path / "post.json")
    assert changed_names(comparison) == set(outputs)


def test_parameter_groups_equal():
    comparison = compare_groups(XDECODER / "focalt_param_groups.json")
    assert comparison.ok, str(comparison)
    counts = {name: group.count for name, group in comparison.groups.items()}
    assert counts == {"learning rates": 724, "decay": 724}


def test_every_changed_parameter_group_is_found(tmp_path):
    content = json.loads((XDECODER / "focalt_param_groups.json").read_text())
    groups = content["groups"]
    groups["backbone_proj"][0] *= 10
    groups["backbone.norm0.weight"][1] = 0.05
    groups["unheard"] = groups.pop("backbone.norm1.weight")
    (tmp_path / "groups.json").write_text(json.dumps(content))
    comparison = compare_groups(tmp_path / "groups.json")
    changed = {"backbone_proj", "backbone.norm0.weight"}
    lacking = {"unheard is not trained", "backbone.norm1.weight is trained"}
    assert changed_names(comparison) == changed | lacking


def test_every_changed_part_of_training_is_found(tmp_path, case, model):
    for path in XDECODER.glob("micro*"):
        shutil.copy(path, tmp_path / path.name)
    path = tmp_path / "micro_losses.json"
    content = json.loads(path.read_text())
    scalars = content["scalars"]
    scalars["raw"]["loss_mask_bce_1"] *= 1.001
    scalars["weighted"]["loss_caption_2"] *= 1.001
    scalars["raw"]["loss_caption_3"] = 0.5
    del scalars["raw"]["loss_grounding_ce_0"]
    scalars["total"] *= 1.001
    pair = scalars["matcher"]["grounding"][2][1]
    pair[0] = pair[0][::-1]
    scalars["matcher"]["default"].pop()
    scalars["unheard"] = 1.0
    path.write_text(json.dumps(content))
    gradients = tmp_path / "micro_grad_l2.json"
    content = json.loads(gradients.read_text())
    content["backbone_proj"][0] *= 1.01
    content["backbone.norm0.weight"][1] += content["backbone.norm0.weight"][0]
    content["unheard"] = content.pop("backbone.norm0.bias")
    gradients.write_text(json.dumps(content))
    comparison = Comparison("changed")
    compare_losses(comparison, XDecoderCase(tmp_path / "micro.json"), model)
    assert changed_names(comparison) == {
        *("losses.loss_mask_bce_1", "losses.weighted.loss_caption_2", "losses.loss_caption_3"),
        *("loss_grounding_ce_0 was not recorded", "losses.total", "unheard was not compared"),
        *("grounding of layer 2", "default"),
        *("backbone_proj", "backbone.norm0.weight (sum)", "unheard", "backbone.norm0.bias"),
    }
