"""The coarse model equals recorded tensors, and the comparison notices when it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fiber import kernels
from fiber.models import swin
from fiber.models.backbone import FiberBackbone
from tests.parity.__main__ import files_of_no_case, main
from tests.parity.coarse import compare_case
from tests.parity.comparison import Comparison
from tests.parity.tolerances import coarse_tolerances

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "../shared/golden/coarse"
SHARED_CASES = [
    pytest.param(name, marks=pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is absent"))
    for name in ("tiny", "tinyhot")
]


def failures(comparison: Comparison) -> list[str]:
    return [failure for group in comparison.groups.values() for failure in group.failures]


def test_micro_equals_the_recorded_tensors():
    comparison = compare_case(GOLDEN / "micro.json")
    assert comparison.ok, str(comparison)
    # Every forward tensor, loss and gradient; the training steps and queues are not compared yet.
    assert sum(group.count for group in comparison.groups.values()) > 900
    assert not [name for name in comparison.not_compared if name.startswith(("fused", "loss"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED_CASES)
def test_larger_cases_equal_the_recorded_tensors(name):
    comparison = compare_case(SHARED / f"{name}.json")
    assert comparison.ok, str(comparison)


def copy_case(folder: Path) -> Path:
    for name in ("micro.json", "micro.safetensors", "micro_weights_check.json"):
        shutil.copy(GOLDEN / name, folder / name)
    return folder


def test_a_changed_tensor_fails(tmp_path, capsys):
    folder = copy_case(tmp_path)
    tensors = load_file(folder / "micro.safetensors")
    tensors["fused.cls_feats"][0, 3] += 1e-4
    save_file(tensors, folder / "micro.safetensors")
    assert main(["coarse", str(folder)]) == 1
    assert "fused.cls_feats" in capsys.readouterr().out


def test_a_changed_gradient_fails(tmp_path):
    folder = copy_case(tmp_path)
    content = json.loads((folder / "micro.json").read_text())
    content["grads"]["vqa"]["vit_model.layers.3.blocks.1.attn.qkv.weight"][0] *= 1.001
    (folder / "micro.json").write_text(json.dumps(content))
    assert any(
        "vqa vit_model" in failure for failure in failures(compare_case(folder / "micro.json"))
    )


def test_a_broken_weight_rule_fails(tmp_path):
    folder = copy_case(tmp_path)
    check = json.loads((folder / "micro_weights_check.json").read_text())
    check["vit_model.patch_embed.proj.weight"][3][0] += 1e-4
    (folder / "micro_weights_check.json").write_text(json.dumps(check))
    assert failures(compare_case(folder / "micro.json")) != []


def planted_faults():
    """Mistakes that a careless implementation makes, as monkeypatches."""
    attention = kernels.window_attention
    image_to_text = kernels.image_to_text_attention

    def without_bias(qkv, bias_table, *rest, **named):
        return attention(qkv, torch.zeros_like(bias_table), *rest, **named)

    def without_shift_mask(qkv, bias_table, qkv_bias, *, window_size, shift, **_):
        rolled = torch.roll(qkv, (-shift, -shift), (1, 2))
        out = attention(rolled, bias_table, qkv_bias, window_size=window_size, shift=0)
        return torch.roll(out, (shift, shift), (1, 2))

    def without_text_mask(q, k, v, *_, **__):
        return image_to_text(q, k, v)

    def sequential(self, pair, tokens, text, text_mask):
        fusion = self.fusion[pair]
        tokens = self.image.block(self.first_fused_block + pair)(
            tokens, lambda attended: fusion.image_to_text(attended, text, text_mask)
        )
        text = self.text.layers[self.first_fused_layer + pair](
            text,
            text_mask[:, None, None, :],
            lambda attended: fusion.text_to_image(attended, tokens),
            normalize_output=pair < len(self.fusion) - 1,
        )
        return tokens, text

    return {
        "no position bias": (kernels, "window_attention", without_bias),
        "no shift mask": (kernels, "window_attention", without_shift_mask),
        "text padding read": (kernels, "image_to_text_attention", without_text_mask),
        "sequential fusion": (FiberBackbone, "_pair", sequential),
        "another epsilon": (swin, "LAYER_NORM_EPS", 1e-6),
    }


@pytest.mark.parametrize("fault", planted_faults())
def test_planted_faults_fail(fault, monkeypatch):
    monkeypatch.setattr(*planted_faults()[fault])
    assert not compare_case(GOLDEN / "micro.json").ok


def test_command_on_folders_without_a_case(tmp_path, capsys):
    assert main(["coarse", str(tmp_path)]) == 2
    assert "no case in it" in capsys.readouterr().err
    assert main(["coarse", str(tmp_path / "absent")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_files_that_no_case_reads_are_named(tmp_path):
    for name in ("tiny.json", "tiny_v2.safetensors", "extras.json", "README.md", "tinyhot.json"):
        (tmp_path / name).touch()
    assert files_of_no_case(tmp_path, ["tiny"]) == ["extras.json", "tinyhot.json"]


def test_nothing_compared_is_no_agreement():
    assert not Comparison("empty").ok


def test_not_a_number_fails():
    comparison = Comparison("case")
    comparison.number("losses", "loss", float("nan"), 1.0, 1e-5)
    assert not comparison.ok


def test_unmeasured_classes_have_no_tolerance():
    with pytest.raises(ValueError, match=r"no tolerance for weights of std 0\.5"):
        coarse_tolerances({"std": 0.5, "depths": [2, 2, 18, 2], "hidden": 128})
