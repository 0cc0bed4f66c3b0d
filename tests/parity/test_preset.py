"""A case without recordings runs every mode, and what is not as it must be is found."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fiber.config import preset
from fiber.models.fiber.keys import ignored_coarse_key
from tests.golden import COARSE
from tests.parity import coarse_preset_run
from tests.parity.__main__ import main
from tests.parity.coarse import compare_case
from tests.parity.coarse_preset import PresetCase, recorded_shapes
from tests.parity.coarse_preset_run import NOT_PRETRAINED
from tests.parity.modes import Mode
from tests.parity.recording import record_case

pytestmark = pytest.mark.oldest


@pytest.mark.parametrize(
    "path",
    [COARSE / f"{name}.json" for name in ("micro", "tiny", "tinyhot")],
    ids=lambda path: path.stem,
)
def test_shapes_follow_from_the_settings_as_they_were_recorded(path):
    content = json.loads(path.read_text())
    recorded = {name: tuple(record["shape"]) for name, record in content["tensors"].items()}
    shapes = recorded_shapes(content["config"], (3, 5), 16)
    assert recorded.items() <= shapes.items()
    # Of deep models some blocks in the middle of the third stage were not recorded.
    assert all(".vit.stage2.block" in name for name in set(shapes) - set(recorded))


def test_what_pretraining_reads_is_what_had_gradients():
    content = json.loads((COARSE / "micro.json").read_text())
    recorded = {name for name, entry in content["grads"]["pretrain_total_full"].items() if entry}
    case = PresetCase("micro")
    config = case.fiber_config()
    read = {name for name in case.parameter_shapes() if not ignored_coarse_key(name, config)}
    assert {name for name in read if not name.startswith(NOT_PRETRAINED)} == recorded


def test_the_base_case_has_the_published_parameters():
    groups = json.loads((COARSE / "base_optimizer_groups.json").read_text())
    published = {name for group in groups for name in group["names"]}
    assert set(PresetCase("base").parameter_shapes()) == published


def test_micro_runs_every_mode(capsys):
    assert main(["coarse", "--preset", "micro"]) == 0
    out = capsys.readouterr().out
    for line in (
        "3 x 9 x 128      itc.vit.stage2.downsample, 4 more, itc.vit.norm",
        "3 x 96           fused.cls_feats",
        "3 x 15           beam3.text_ids, beam5.text_ids",
        "losses and gradients",
        "optimizer step",
        "GB above the weights",
        "finite and of the published shapes",
    ):
        assert line in out, line
    assert "FAILED" not in out


def test_what_is_not_as_expected_is_named():
    mode = Mode("some")
    found = {"a": torch.ones(2, 3), "b": torch.tensor([1.0, float("nan")]), "c": torch.ones(4)}
    mode.add(found, {"a": (3, 2), "b": (2,), "c": (4,), "d": ()})
    assert mode.faults == [
        "a has shape (2, 3), expected (3, 2)",
        "b is not finite",
        "d is missing",
    ]
    assert "FAILED" in str(mode) and mode.count == 4


def test_a_weight_that_is_no_number_fails(monkeypatch, capsys):
    drawn = PresetCase.published_state

    def broken(case):
        state = drawn(case)
        state["cross_modal_text_pooler.dense.bias"][3] = float("inf")
        state["cross_modal_text_pooler.dense.weight"][3] = float("nan")
        return state

    monkeypatch.setattr(PresetCase, "published_state", broken)
    monkeypatch.setattr(coarse_preset_run, "_MODES", {"fused": coarse_preset_run._MODES["fused"]})
    assert main(["coarse", "--preset", "micro"]) == 1
    out = capsys.readouterr().out
    assert "fused.cls_feats is not finite" in out
    # Modes that do not run are no success either.
    assert "after_enqueue.image_queue: recorded of a case, given by no mode" in out
    assert "NOT as expected" in out


def test_a_weight_of_another_name_or_shape_is_named(monkeypatch, capsys):
    shapes = PresetCase.parameter_shapes

    def broken(case):
        found = shapes(case)
        found["vqa_classifier.3.weigth"] = found.pop("vqa_classifier.3.weight")
        found["vqa_classifier.3.bias"] = (22,)
        return found

    monkeypatch.setattr(PresetCase, "parameter_shapes", broken)
    assert main(["coarse", "--preset", "micro"]) == 2
    err = capsys.readouterr().err
    for part in (
        "missing vqa_classifier.3.weight",
        "vqa_classifier.3.weigth",
        "vqa_classifier.3.b",
    ):
        assert part in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["coarse", "somewhere", "--preset", "base"], "expected a folder or --preset"),
        (["fine", "--preset", "base", "--model", "eager"], "the package's own model"),
        (["coarse", "--preset", "base", "--model", "eager"], "the package's own model"),
        (["coarse", "--preset", "huge"], "invalid choice: 'huge'"),
    ],
)
def test_wrong_use(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_in_the_form_of_the_base_case_is_compared_whole(tmp_path, capsys):
    """Fewer gradients, no optimiser steps, larger tensors in samples: all that is there counts."""
    path = record_case("micro", tmp_path)
    content = json.loads(path.read_text())
    assert content["tensors"]["input.image_input_queue"]["stride"] > 1
    # Settings of the groups may stand there without the gradients that name them elsewhere.
    recorded = json.loads((COARSE / "micro.json").read_text())["scalars"]
    content["scalars"] |= {name: recorded[name] for name in recorded if name.startswith("opt.")}
    content["scalars"] |= {"time.forward_s": 1.0, "time.anything": 2.0}
    path.write_text(json.dumps(content))
    comparison = compare_case(path)
    assert comparison.ok, str(comparison)
    assert max(group.worst for group in comparison.groups.values()) < 1e-6
    assert "optimizer groups" in comparison.groups
    assert main(["coarse", str(tmp_path), "--model", "eager"]) == 0
    tensors = load_file(tmp_path / "micro.safetensors")
    tensors["caption.logits"].view(-1)[17] += 1e-2
    save_file(tensors, tmp_path / "micro.safetensors")
    capsys.readouterr()
    for model in ("fiber", "eager"):
        assert main(["coarse", str(tmp_path), "--model", model]) == 1
        assert "caption.logits" in capsys.readouterr().out


@pytest.mark.slow
def test_feature_queues_of_which_samples_are_stored_are_drawn(tmp_path):
    path = record_case("micro", tmp_path)
    content = json.loads(path.read_text())
    tensors = load_file(path.with_suffix(".safetensors"))
    tensors["input.text_queue"] = tensors["input.text_queue"].reshape(-1)[::7].clone()
    content["tensors"]["input.text_queue"]["stride"] = 7
    save_file(tensors, path.with_suffix(".safetensors"))
    path.write_text(json.dumps(content))
    comparison = compare_case(path)
    assert comparison.ok, str(comparison)


def test_settings_of_the_base_case_are_those_of_the_preset():
    built, published = PresetCase("base").fiber_config(), preset("base")
    off = {"swin": {"drop_path": 0.0}, "roberta": {"dropout": 0.0}}
    for part, changes in off.items():
        assert getattr(built, part) == dataclasses.replace(getattr(published, part), **changes)
    assert (built.image_size, built.max_tokens) == (published.image_size, published.max_tokens)
    assert built.fusion == published.fusion
    assert built.image_text.num_answers == published.image_text.num_answers
