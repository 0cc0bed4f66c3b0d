"""The METER model equals the recorded one, and a difference of any kind is found."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden import METER
from tests.parity import meter
from tests.parity.comparison import Comparison
from tests.parity.meter_case import TASKS, MeterCase, is_moved_by_noise, is_noise
from tests.parity.tolerances import METER as METER_TOLERANCES
from tests.parity.tolerances import meter_tolerances

pytestmark = pytest.mark.oldest

#: Recorded tensors that depend on the last text layer.
CHANGED = ("cross.text1", "cross.text_pooled", "text_feats", "cls")


@pytest.mark.parametrize("name", ["clip_micro", "swin_micro"])
def test_the_committed_case_equals(name):
    comparison = meter.compare_case(METER / f"{name}.json")
    assert comparison.ok, str(comparison)
    # Every kind of thing was compared.
    assert {group: found.count > 0 for group, found in comparison.groups.items()} == dict.fromkeys(
        [
            *(
                "weight rule",
                "absolute maxima",
                "pair",
                "edge cases",
                "resized tables",
                "another image size",
            ),
            *("heads", "losses", "heads (integers)", "no gradient", "gradients", "groups"),
            *("small gradients",) * ("small gradients" in comparison.groups),
            *(
                "steps",
                "steps before a change",
                "learning rates",
                "weights after steps",
                "biases after steps",
            ),
        ],
        True,
    )


@pytest.fixture(scope="module")
def case():
    return MeterCase(METER / "clip_micro.json")


def test_another_weight_is_found(case):
    model = case.model("pretrain")
    with torch.no_grad():
        model.backbone.text_layers[1].feed_forward.mlp[2].weight.mul_(1.001)
        comparison = Comparison("changed")
        meter.compare_tensors(comparison, case, "pair", meter.run_pair(model, case))
    failed = [failure.split(":")[0] for failure in comparison.groups["pair"].failures]
    assert set(failed) == {f"pair.{name}" for name in CHANGED}


def test_a_record_that_nothing_computes_is_named(monkeypatch):
    monkeypatch.setattr(meter, "TASKS", {})
    comparison = meter.compare_case(METER / "clip_micro.json")
    assert not comparison.ok
    assert {"vqa.vqa_logits", "snli.loss.snli", "irtr.steps", "grad.pretrain.mlm"} <= {
        *comparison.not_compared
    }


def test_pruned_outputs_are_those_of_the_whole_layer(case):
    model = case.model("pretrain")
    ids, mask = case.text()
    backbone, images = model.backbone, case.input("image")
    with torch.no_grad():
        whole = backbone.encode_pair(images, ids, mask)
        pooled = backbone.encode_pair(images, ids, mask, wanted="pooled")
        text = backbone.encode_pair(images, ids, mask, wanted="text")
    assert pooled.text.shape[1] == pooled.stages[-1].shape[1] == 1
    torch.testing.assert_close(model.pooled(pooled), model.pooled(whole), rtol=0, atol=3e-6)
    assert text.stages == ()
    torch.testing.assert_close(text.text, whole.text, rtol=0, atol=3e-6)


def test_tolerances_of_the_published_width(case):
    """A wrong decay, which changes weights by 1.9e-5, is seen at every width."""
    assert case.tolerances == METER_TOLERANCES
    base = meter_tolerances(case.config | {"hidden": 768})
    assert base.weights_after < 1.9e-5
    assert base.steps > METER_TOLERANCES.steps


def test_noise_is_named_by_its_parameter():
    for function in (is_noise, is_moved_by_noise):
        assert function("cross_modal_text_layers.0.attention.self.key.bias")
        assert not function("cross_modal_text_layers.0.attention.self.query.bias")
    joint = "vit_model.visual.transformer.resblocks.0.attn.in_proj_bias"
    assert not is_noise(joint)
    assert is_moved_by_noise(joint)


#: Gradients, weights after steps and losses of one task.
GRADIENTS = "grads", "vqa.vqa"
STEPS = "train_steps", "vqa"
JOINT = "vit_model.visual.transformer.resblocks.0.attn.in_proj_bias"


def drop(*places):
    """A change that removes an entry."""

    def change(content):
        *parents, last = places
        for place in parents:
            content = content[place]
        del content[last]

    return change


def set_to(value, *places):
    """A change of a number: its value times `value`."""

    def change(content):
        *parents, last = places
        for place in parents:
            content = content[place]
        content[last] *= value

    return change


@pytest.mark.parametrize(
    ("change", "group", "named"),
    [
        (drop(*GRADIENTS), "names", "gradients of vqa.vqa: not recorded"),
        (drop(*GRADIENTS, JOINT), "names", f"{JOINT}: not in the gradients of vqa.vqa"),
        (drop(*STEPS), "names", "vqa: no steps"),
        (drop(*STEPS, "params_after"), "names", "vqa parameters after steps: not recorded"),
        (drop(*STEPS, "params_after", JOINT), "names", f"{JOINT}: not in the vqa parameters"),
        (drop(*STEPS, "losses", 2, "total"), "names", "vqa: expected total, vqa_loss before and"),
        (drop(*STEPS, "losses", 3), "names", "vqa: expected total, vqa_loss before and after"),
        (drop("scalars", "vqa.loss.vqa"), "names", "vqa.loss.vqa: not recorded"),
        (drop("tensors", "vqa.vqa_logits"), "names", "vqa.vqa_logits: stored, not described"),
        (set_to(1000, "tensors", "pair.cls", "absmax"), "absolute maxima", "pair.cls"),
        (set_to(0.9, "tensors", "pair.cls", "absmax"), "absolute maxima", "pair.cls"),
        (set_to(1.001, *GRADIENTS, JOINT, 0), "gradients", f"vqa.vqa {JOINT}"),
    ],
)
def test_a_changed_recording_is_found(tmp_path, monkeypatch, change, group, named):
    for path in METER.glob("clip_micro*"):
        shutil.copy(path, tmp_path / path.name)
    path = tmp_path / "clip_micro.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    monkeypatch.setattr(meter, "TASKS", {"vqa": TASKS["vqa"]})
    comparison = meter.compare_case(path)
    assert any(failure.startswith(named) for failure in comparison.groups[group].failures)


def test_a_tensor_that_every_case_has_is_named_when_it_is_gone(tmp_path):
    for path in METER.glob("clip_micro*"):
        shutil.copy(path, tmp_path / path.name)
    path = tmp_path / "clip_micro.json"
    content = json.loads(path.read_text())
    tensors = load_file(path.with_suffix(".safetensors"))
    del content["tensors"]["irtr.score"], tensors["irtr.score"]
    path.write_text(json.dumps(content))
    save_file(tensors, path.with_suffix(".safetensors"))
    comparison = meter.compare_case(path)
    (failure,) = comparison.groups["names"].failures
    assert failure.startswith("irtr.score: not recorded")


def test_images_of_another_size_are_refused(case):
    model = case.model("vqa")
    ids, mask = case.text()
    with pytest.raises(ValueError, match=r"64 x 64 pixels, got \(4, 3, 96, 96\)"):
        model(case.input("image_resized"), ids, mask, "vqa")
    with pytest.raises(ValueError, match="'vqa', got 'itm'"):
        model(case.input("image"), ids, mask, "itm")


def test_gradient_checkpointing_changes_nothing(case):
    model = case.model("vqa")
    model = type(model)(dataclasses.replace(model.config)).train()
    ids, mask = case.text()
    gradients = []
    for enabled in (False, True):
        model.backbone.gradient_checkpointing = enabled
        model.zero_grad(set_to_none=True)
        model(case.input("image"), ids, mask, "vqa").sum().backward()
        gradients.append(model.backbone.image_transform.weight.grad.clone())
    torch.testing.assert_close(*gradients)
