"""The coarse model equals recorded tensors, and the comparison notices when it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fiber.checkpoints.published import published_state
from fiber.kernels import use_backend
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.fiber.keys import ignored_coarse_key
from tests.golden import COARSE, KEYS
from tests.parity import coarse
from tests.parity.__main__ import files_not_compared, main
from tests.parity.coarse import compare_case
from tests.parity.coarse_case import CoarseCase
from tests.parity.coarse_extras import base_config, compare_extras, compare_optimizer_groups
from tests.parity.coarse_preset import BASE
from tests.parity.comparison import Comparison
from tests.parity.tolerances import coarse_tolerances

pytestmark = pytest.mark.oldest


def failures(comparison: Comparison) -> list[str]:
    return [failure for group in comparison.groups.values() for failure in group.failures]


# Whichever code the kernels run where there is no GPU.
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.filterwarnings(r"ignore:fiber.kernels.\w+.native:UserWarning")
def test_micro_equals_the_recorded_tensors(backend):
    with use_backend(backend):
        comparison = compare_case(COARSE / "micro.json")
    assert comparison.ok, str(comparison)
    assert not comparison.not_compared
    # Tensors, losses, gradients, groups of the optimiser, its steps and the queue.
    assert sum(group.count for group in comparison.groups.values()) > 1400
    for name in ("optimizer steps", "optimizer groups", "after_enqueue counts", "gradients"):
        assert name in comparison.groups


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tinyhot"])
def test_larger_cases_equal_the_recorded_tensors(name):
    comparison = compare_case(COARSE / f"{name}.json")
    assert comparison.ok, str(comparison)


def copy_case(folder: Path) -> Path:
    for name in ("micro.json", "micro.safetensors", "micro_weights_check.json"):
        shutil.copy(COARSE / name, folder / name)
    return folder


def change_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_whatever_is_changed_fails(tmp_path, capsys):
    """All changes at once, since each comparison runs every mode of the model."""
    folder = copy_case(tmp_path)
    tensors = load_file(folder / "micro.safetensors")
    tensors["fused.cls_feats"][0, 3] += 1e-4
    tensors["fused.something"] = tensors.pop("fused.image_feats")
    save_file(tensors, folder / "micro.safetensors")

    def change_case(content):
        records, scalars = content["tensors"], content["scalars"]
        records["fused.something"] = records.pop("fused.image_feats")
        content["grads"]["vqa"]["vit_model.layers.3.blocks.1.attn.qkv.weight"][0] *= 1.001
        scalars["train_steps"][2]["itm"] = 1.28558
        scalars["train_steps"][1]["lr"][3] = 0.001
        scalars["train_steps"][1]["queue_ptr"] = 4
        scalars["opt.group_sizes"][2] = 10
        scalars["after_enqueue.queue_total"] = 7
        scalars["after_steps.param_norms"]["temp"] = 0.06974
        scalars["loss.itm"] = 0.8949
        scalars["other"] = 1.0

    def change_weights(check):
        check["vit_model.patch_embed.proj.weight"][3][0] += 1e-4

    change_json(folder / "micro.json", change_case)
    change_json(folder / "micro_weights_check.json", change_weights)
    (folder / "micro_more.safetensors").touch()
    assert main(["coarse", str(folder)]) == 1
    out = capsys.readouterr().out
    for named in (
        "\n    vqa vit_model.layers.3.blocks.1.attn.qkv.weight",
        "\n    vit_model.patch_embed.proj.weight: error",
        "\n    fused.cls_feats: error",
        "\n    step 2 itm",
        "\n    step 1 lr",
        "\n    step 1 queue_ptr",
        "\n    size of group 2",
        "\n    after_enqueue.queue_total",
        "\n    temp: error",
        "\n    loss.itm",
        "NOT COMPARED: 2\n    fused.something\n    other\n",
        "NOT COMPARED: micro_more.safetensors",
    ):
        assert named in out, named


def test_a_renamed_tensor_fails(tmp_path, capsys):
    folder = copy_case(tmp_path)
    tensors = load_file(folder / "micro.safetensors")
    tensors["fused.cls_feature"] = tensors.pop("fused.cls_feats")
    save_file(tensors, folder / "micro.safetensors")
    assert main(["coarse", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "fused.cls_feats: described, not stored" in out
    assert "fused.cls_feature: stored, not described" in out


def test_a_renamed_weight_fails(tmp_path, capsys):
    folder = copy_case(tmp_path)

    def change(check):
        check["temperature"] = check.pop("temp")
        check["itm_score.fc.wait"] = check.pop("itm_score.fc.weight")

    change_json(folder / "micro_weights_check.json", change)
    assert main(["coarse", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "missing itm_score.fc.weight" in out and "unknown itm_score.fc.wait" in out


def test_extras_and_groups_equal_what_is_recorded():
    extras = compare_extras(COARSE / "extras.json")
    assert extras.ok, str(extras)
    # Ten operations, each in both directions.
    assert extras.groups["RandAugment (integers)"].count == 20
    groups = compare_optimizer_groups(COARSE / "base_optimizer_groups.json")
    assert groups.ok, str(groups)


def test_changed_extras_fail(tmp_path, capsys):
    folder = copy_case(tmp_path)
    for name in ("extras.json", "extras.safetensors", "base_optimizer_groups.json"):
        shutil.copyfile(COARSE / name, folder / name)

    def change(content):
        content["vqa.normalize_word"]["two"] = "two"
        content["ciderD"]["scores"][1] += 1e-6
        content["unheard.of"] = 1.0
        content["randaug.ShearX.lo.args"][0] = 0.2

    change_json(folder / "extras.json", change)
    tensors = load_file(folder / "extras.safetensors")
    tensors["bias.after_480"][7, 1] += 1e-4
    tensors["resize_u8.48"][3, 4, 1] += 1
    tensors["randaug.Rotate.hi"][30, 40, 2] -= 1
    tensors["posids.outcome"] = tensors.pop("posids.output")
    save_file(tensors, folder / "extras.safetensors")

    def move(groups):
        groups[1]["names"].append(groups[0]["names"].pop(5))

    change_json(folder / "base_optimizer_groups.json", move)
    assert main(["coarse", str(folder)]) == 1
    out = capsys.readouterr().out
    for fault in (
        "'two' -> '2', recorded 'two'",
        "caption 1: error",
        "bias.after_480: error",
        "resize_u8.48: error",
        "ShearX, recorded [0.2, [128, 128, 128]]: error",
        "randaug.Rotate.hi: error",
        "posids.output is missing",
        "\n    posids.outcome\n    unheard.of",
        "group 0 also has",
        "group 1 lacks",
    ):
        assert fault in out, fault


def test_a_folder_of_the_base_model_can_be_read(tmp_path):
    """Its recordings are compared where they are: here its config, names and groups."""
    content = {"config": BASE, "tensors": {}, "scalars": {}, "grads": {}}
    (tmp_path / "base.json").write_text(json.dumps(content))
    save_file({}, tmp_path / "base.safetensors")
    (tmp_path / "base_weights_check.json").write_text("{}")
    found = CoarseCase(tmp_path / "base.json").fiber_config()
    assert coarse_tolerances(BASE).tensors == 1e-5
    with torch.device("meta"):
        model, expected = FiberImageText(found), FiberImageText(base_config())
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in expected.state_dict().items()}
    keys = json.loads((KEYS / "coarse_keys.json").read_text())["keys"]
    ours = {name: list(t.shape) for name, t in published_state(model).items()}
    assert ours == {name: keys[name][0] for name in ours}
    assert all(ignored_coarse_key(name, found) for name in set(keys) - set(ours))


def test_files_that_nothing_reads_are_named(tmp_path):
    for name in (
        *("tiny.json", "tiny.safetensors", "tiny_weights_check.json", "tiny_mutations.json"),
        *("tiny_v2.safetensors", "extras.json", "README.md", "tinyhot.json"),
    ):
        (tmp_path / name).touch()
    unread = files_not_compared(tmp_path, ["tiny"], coarse)
    assert unread == ["tiny_v2.safetensors", "tinyhot.json"]


def test_nothing_compared_is_no_agreement():
    assert not Comparison("empty").ok


def test_not_a_number_fails():
    comparison = Comparison("case")
    comparison.number("losses", "loss", float("nan"), 1.0, 1e-5)
    assert not comparison.ok


def test_unmeasured_classes_have_no_tolerance():
    with pytest.raises(ValueError, match=r"no tolerance for weights of std 0\.5"):
        coarse_tolerances({"std": 0.5, "depths": [2, 2, 18, 2], "hidden": 128})
