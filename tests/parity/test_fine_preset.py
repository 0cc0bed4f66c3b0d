"""A fine case without recordings runs every mode; a folder of its own making is compared whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fiber.config import preset
from tests.golden import FINE
from tests.parity import fine_preset, fine_preset_run
from tests.parity.__main__ import main
from tests.parity.fine import compare_case
from tests.parity.fine_case import FineCase
from tests.parity.fine_preset import BASE_PARAMETERS, FinePresetCase, recorded_shapes
from tests.parity.fine_recording import record_case

pytestmark = pytest.mark.oldest


@pytest.mark.parametrize(
    "path",
    [FINE / f"{name}.json" for name in ("tiny_v2_sharp", "tiny_v2", "tiny_v3")],
    ids=lambda path: path.stem,
)
def test_shapes_follow_from_the_settings_as_they_were_recorded(path):
    case = FineCase(path)
    recorded = {
        name: tuple(tensor.shape)
        for name, tensor in case.tensors.items()
        # How many boxes and positive tokens there are does not follow from settings.
        if not name.startswith(("det.", "atss.token_", "atss.centerness_"))
    }
    assert len(recorded) >= 24
    assert recorded.items() <= recorded_shapes(case).items()


@pytest.fixture(scope="module")
def micro():
    """The run of the micro preset: exit code and what was printed."""
    lines = []
    report = fine_preset_run.run_preset("micro", lines.append)
    return report, "\n".join(lines)


def test_micro_runs_every_mode_of_both_versions(micro):
    report, out = micro
    assert report.ok, out
    assert [mode.name for mode in report.modes] == [*fine_preset_run.MODES] * 2
    for line in (
        "micro_v2: 2 pictures of 160 x 192 pixels, texts of 256 tokens",
        "micro_v3: 2 pictures",
        "2 x 32 x 10 x 12 train.backbone.C4",
        "2 x 480 x 256    train.head.dot_product_logits.P3",
        "in training mode",
        "optimizer step",
        "peak memory",
    ):
        assert line in out, line
    counts = {mode.name: mode.count for mode in report.modes[: len(fine_preset_run.MODES)]}
    # Names, gradients of all that is trained and the losses of a model of the published depth.
    assert counts["weights"] == 726 and counts["in training mode"] == 694 + 4


def test_a_weight_that_is_no_number_fails(monkeypatch, capsys):
    drawn = FinePresetCase.published_state

    def broken(case):
        state = drawn(case)
        state["rpn.head.bbox_pred.bias"][3] = float("nan")
        return state

    monkeypatch.setattr(FinePresetCase, "published_state", broken)
    only = {"training texts": fine_preset_run.MODES["training texts"]}
    monkeypatch.setattr(fine_preset_run, "MODES", only)
    assert main(["fine", "--preset", "micro"]) == 1
    out = capsys.readouterr().out
    assert "train.head.bbox_reg.P3 is not finite" in out
    assert "NOT as expected" in out


def test_modes_that_do_not_run_fail(monkeypatch, capsys):
    only = {"weights": fine_preset_run.MODES["weights"]}
    monkeypatch.setattr(fine_preset_run, "MODES", only)
    assert main(["fine", "--preset", "micro"]) == 1
    assert "anchors.P3: recorded of a case, given by no mode" in capsys.readouterr().out


def test_a_weight_of_another_name_or_shape_is_named(monkeypatch, capsys):
    shapes = FinePresetCase.published_shapes

    def broken(case):
        found = shapes(case)
        found["rpn.head.log_skale"] = found.pop("rpn.head.log_scale")
        found["rpn.head.bias0"] = (2,)
        return found

    monkeypatch.setattr(FinePresetCase, "published_shapes", broken)
    assert main(["fine", "--preset", "micro"]) == 2
    err = capsys.readouterr().err
    for part in (
        "missing rpn.head.log_skale",
        "unknown rpn.head.log_scale",
        "of another shape rpn.head.bias0",
    ):
        assert part in err


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_settings_of_the_base_case_are_those_of_the_preset(version):
    case = FinePresetCase("base", version)
    built, published = case.fiber_config(), preset("base", stage="fine").fine(version=version)
    for part in ("swin", "roberta", "fusion", "detector"):
        ours, theirs = getattr(built, part), getattr(published, part)
        if part == "swin":
            theirs = dataclasses.replace(theirs, drop_path=0.4)
        assert ours == theirs, part
    shapes = case.published_shapes()
    count = sum(
        torch.Size(shape).numel()
        for name, shape in shapes.items()
        if not fine_preset.is_buffer(name)
    )
    assert count == BASE_PARAMETERS[version]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder with a base-like v3 case and a sharp tiny-like v3 case."""
    folder = tmp_path_factory.mktemp("recorded")
    record_case(FinePresetCase("micro", "v3"), "base", folder)
    record_case(FinePresetCase("micro", "v3", sharp=True), "tiny", folder)
    return folder


def copy_base(recorded: Path, folder: Path) -> Path:
    for path in recorded.glob("base*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / "base_v3.json"


@pytest.mark.slow
def test_folders_of_the_same_format_are_compared_whole(recorded, capsys):
    assert main(["fine", str(recorded)]) == 0
    out = capsys.readouterr().out
    assert "\ntiny_v3_sharp " in out and out.startswith("base_v3 ")
    with safe_open(recorded / "base_v3.safetensors", "pt") as stored:
        names = {*stored.keys()}
    comparison = compare_case(recorded / "base_v3.json")
    assert comparison.compared >= names
    assert max(group.worst for group in comparison.groups.values()) < 1e-6
    # One box may be lost and one be found in its place.
    assert comparison.groups["detections"].tolerance == 2
    assert comparison.groups["gradients"].count > 500


@pytest.mark.parametrize("name", ["train.backbone.C4", "train.fpn.P7", "train.head.centerness.P5"])
def test_one_changed_value_fails(recorded, tmp_path, capsys, name):
    path = copy_base(recorded, tmp_path)
    path.with_name("base_v3_grad_l2.json").unlink()
    tensors = load_file(path.with_suffix(".safetensors"))
    tensors[name].view(-1)[tensors[name].numel() // 2] += 1e-4
    save_file(tensors, path.with_suffix(".safetensors"))
    assert main(["fine", str(tmp_path)]) == 1
    assert f"{name}: error 1.0" in capsys.readouterr().out


def test_one_renamed_tensor_fails(recorded, tmp_path, capsys):
    path = copy_base(recorded, tmp_path)
    path.with_name("base_v3_grad_l2.json").unlink()
    tensors = load_file(path.with_suffix(".safetensors"))
    tensors["train.fpn.P8"] = tensors.pop("train.fpn.P7")
    save_file(tensors, path.with_suffix(".safetensors"))
    assert main(["fine", str(tmp_path)]) == 1
    assert "NOT COMPARED: 1\n    train.fpn.P8" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["base_v3.safetensors", "base_inputs.safetensors"])
def test_one_missing_companion_fails(recorded, tmp_path, capsys, missing):
    copy_base(recorded, tmp_path)
    (tmp_path / missing).unlink()
    (tmp_path / "base_v3_grad_l2.json").unlink()
    assert main(["fine", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "no tensor is recorded" in captured.out or "does not exist" in captured.err


def test_a_gradient_that_is_missing_fails(recorded, tmp_path, capsys):
    path = copy_base(recorded, tmp_path).with_name("base_v3_grad_l2.json")
    norms = json.loads(path.read_text())
    del norms["rpn.head.bias0"]
    path.write_text(json.dumps(norms))
    assert main(["fine", str(tmp_path)]) == 1
    assert "rpn.head.bias0: error" in capsys.readouterr().out
