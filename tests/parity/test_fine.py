"""The detector equals recorded tensors of the published one, and what differs is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fiber.kernels import use_backend
from tests.golden import FINE
from tests.parity.__main__ import main
from tests.parity.fine import compare_case

pytestmark = pytest.mark.oldest

SHARP = "tiny_v2_sharp"
PARTS = ("backbone_fpn", "train_head", "test")


# Whichever code the kernels run where there is no GPU.
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.filterwarnings(r"ignore:fiber.kernels.\w+.native:UserWarning")
def test_the_committed_case_equals_the_recorded_tensors(backend):
    with use_backend(backend):
        comparison = compare_case(FINE / f"{SHARP}.json")
    assert comparison.ok, str(comparison)
    assert not comparison.not_compared
    counts = {name: group.count for name, group in comparison.groups.items()}
    # Sharp gradients of two scalars change sides of the floor from processor to processor.
    small = counts.pop("small gradients") + counts.pop("gradients")
    assert counts.pop("inputs") >= 5 and small == 693
    assert counts == {
        "parameters": 1,
        "train.vis": 5,
        "train.txt": 7,
        "train.lang": 1,
        "train.backbone": 3,
        "train.fpn": 5,
        "train.head": 15,
        "losses": 5,
        "positives per picture": 2,
        "noisy gradients": 1,
        "gradients that are absent": 2,
        "test.head": 15,
        "numbers of detections": 8,
        "detections": 8,
    }


@pytest.mark.parametrize("case", ["tiny_v2", "tiny_v3"])
def test_recorded_case(case):
    comparison = compare_case(FINE / f"{case}.json")
    print(comparison)
    assert comparison.ok, str(comparison)
    assert not comparison.not_compared


@pytest.fixture
def folder(tmp_path):
    """A copy of the sharp case that may be changed."""
    for path in (*FINE.glob(f"{SHARP}*"), FINE / "tiny_inputs.safetensors"):
        shutil.copy(path, tmp_path / path.name)
    return tmp_path


def change_tensors(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_changed_and_renamed_tensors_fail(folder, capsys):
    def backbone(tensors):
        tensors["train.fpn.P4"][0, 3, 2, 1] += 2e-3
        tensors["train.lang.tokens"] = tensors.pop("train.lang.hidden")

    def head(tensors):
        tensors["train.head.bbox_reg.P5"] = tensors["train.head.bbox_reg.P5"][:1].clone()

    def test(tensors):
        tensors["test.head.centerness.P3"][1, 0, 4, 4] += 2e-3
        tensors["det.strict.1.scores"][7] += 2e-3
        tensors["det.default.0.box"] = tensors.pop("det.default.0.boxes")

    for part, change in zip(PARTS, (backbone, head, test), strict=True):
        change_tensors(folder / f"{SHARP}_{part}.safetensors", change)
    save_file({"train.more": torch.zeros(1)}, folder / f"{SHARP}_more.safetensors")
    (folder / f"{SHARP}_grad_l2.json").unlink()
    assert main(["fine", str(folder)]) == 1
    out = capsys.readouterr().out
    for fault in (
        "train.fpn.P4: error",
        "train.head.bbox_reg.P5 (2, 4, 5, 6), recorded (1, 4, 5, 6)",
        "test.head.centerness.P3: error",
        "det.strict.1: error 2.00e+00",
        "det.default.0.boxes missing",
        "NOT COMPARED: 5\n    det.default.0.box\n    det.default.0.labels\n"
        "    det.default.0.scores\n    train.lang.tokens\n    train.more\n",
        "NOT equal to the recorded tensors",
    ):
        assert fault in out, fault


def test_changed_numbers_fail(folder, capsys):
    def content(content):
        content["losses"]["loss_reg"] *= 1 + 3.5e-5
        content["losses"]["loss_tokens"] = 1.0
        content["losses"]["loss_cls"] = 0.1
        content["atss_num_positive_per_image"][1] += 1
        content["annotations"][0]["boxes"][1][2] += 0.5
        content["detection"]["strict"]["num"][0] -= 1
        content["something"] = 1
        content["config"]["num_params"] += 1

    changed = []

    def gradients(norms):
        names = [name for name, norm in norms.items() if norm is not None]
        largest = max(names, key=norms.__getitem__)
        norms[largest] *= 1.005
        changed.append(largest)
        norms[f"{names[0]}s"] = norms.pop(names[0])
        norms["rpn.head.cls_logits.weight"] = 1.0

    change_json(folder / f"{SHARP}.json", content)
    change_json(folder / f"{SHARP}_grad_l2.json", gradients)
    assert main(["fine", str(folder)]) == 1
    out = capsys.readouterr().out
    for fault in (
        "num_params: error",
        "in.boxes: error",
        "loss_reg: error 3.",
        "loss_cls: error 1.00e-01",
        "picture 1: error 1",
        "det.strict.0: error 1",
        "gradients of other names             2",
        "rpn.head.cls_logits.weight: error 1",
        "NOT COMPARED: 2\n    losses.loss_tokens\n    something\n",
    ):
        assert fault in out, fault
    assert f"{changed[0]}: error" in out


def test_files_that_nothing_reads_fail(folder, capsys):
    (folder / f"{SHARP}_grad_l2.json").unlink()
    (folder / f"{SHARP}_more.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, folder / "base_v2.safetensors")
    assert main(["fine", str(folder)]) == 1
    out = capsys.readouterr().out
    assert f"NOT COMPARED: base_v2.safetensors\nNOT COMPARED: {SHARP}_more.json\n" in out


def test_a_case_without_its_inputs_or_tensors_fails(folder, capsys):
    for path in folder.glob(f"{SHARP}_*"):
        path.unlink()
    assert main(["fine", str(folder)]) == 1
    assert f"no tensor is recorded beside {SHARP}.json" in capsys.readouterr().out
    (folder / "tiny_inputs.safetensors").unlink()
    assert main(["fine", str(folder)]) == 1
    assert "tiny_inputs.safetensors does not exist" in capsys.readouterr().err


def test_a_folder_without_cases_is_no_agreement(tmp_path, capsys):
    assert main(["fine", str(tmp_path)]) == 2
    assert "no case in it" in capsys.readouterr().err
    assert main(["fine", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
