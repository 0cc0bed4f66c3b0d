"""What is recorded beside the fine cases is compared, and what differs in it is found."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.ops import nms

from fiber.data import Tokenizer
from fiber.models.fiber import dyhead
from tests.golden import FINE
from tests.parity import fine, fine_geometry, fine_groups, fine_text, fine_units
from tests.parity.__main__ import files_not_compared
from tests.parity.comparison import Comparison
from tests.parity.fine_geometry import compare_geometry, compare_part
from tests.parity.fine_groups import compare_groups
from tests.parity.fine_text import compare_text
from tests.parity.fine_units import compare_units
from tests.parity.recorded_tokens import recorded_tokens

pytestmark = pytest.mark.oldest

UNITS = FINE / "units_deform_dyconv.safetensors"
GEOMETRY = FINE / "data_geometry.json"
TEXT = FINE / "data_text.json"
GROUPS = FINE / "param_groups.json"
#: Not part of the repository.
ROBERTA = Path(__file__).parents[2] / "../shared/assets/roberta-base"


def failures(comparison: Comparison) -> list[str]:
    return [failure for group in comparison.groups.values() for failure in group.failures]


def test_every_recorded_file_is_read():
    assert files_not_compared(FINE, ["tiny_v2", "tiny_v2_sharp", "tiny_v3"], fine) == []
    assert not fine.PENDING_FILES


def test_units_equal_what_is_recorded():
    comparison = compare_units(UNITS)
    assert comparison.ok, str(comparison)
    assert {name: group.count for name, group in comparison.groups.items()} == {
        "convolutions": 2,
        "block": 4,
    }


def test_units_with_any_changed_value_fail(tmp_path):
    recorded = load_file(UNITS)
    for name, tensor in recorded.items():
        changed = tensor.clone()
        # The middle of a map, or the offset of a middle tap; not all offsets are read.
        place = 254 if name.endswith("offset_mask_raw") else changed.numel() // 2
        changed.view(-1)[place] += 1e-2
        save_file(recorded | {name: changed}, tmp_path / UNITS.name)
        assert not compare_units(tmp_path / UNITS.name).ok, name


def test_units_with_a_renamed_tensor_fail(tmp_path):
    recorded = load_file(UNITS)
    recorded["dyconv.other.2"] = recorded.pop("dyconv.out.2")
    save_file(recorded, tmp_path / UNITS.name)
    comparison = compare_units(tmp_path / UNITS.name)
    assert any("dyconv.out.2 is missing" in failure for failure in failures(comparison))
    assert "dyconv.other.2" in comparison.not_compared


def test_offsets_that_are_cropped_instead_of_read_again_fail(monkeypatch):
    def crop(values, size):
        return values[..., : size[0], : size[1]]

    for module in (dyhead, fine_units):
        monkeypatch.setattr(module, "reread", crop)
    found = failures(compare_units(UNITS))
    assert any("out_mismatched_offset" in failure for failure in found)
    assert any("dyconv.out.0" in failure for failure in found)


def with_one_change(content: Any) -> Any:
    """A number in the middle of a piece of JSON, in the last part of an object, is another one."""
    if isinstance(content, bool):
        return not content
    if isinstance(content, int | float):
        return 1 - content if content in (0, 1) else type(content)(1.5 * content + 1)
    changed = copy.copy(content)
    place = list(content)[-1] if isinstance(content, dict) else len(content) // 2
    changed[place] = with_one_change(content[place])
    return changed


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_geometry_equals_what_is_recorded():
    comparison = compare_geometry(GEOMETRY)
    assert comparison.ok, str(comparison)
    assert comparison.groups["resize_get_size (exact)"].count == 35
    assert comparison.groups["learning rates"].count == 17
    assert comparison.groups["boxlist"].count == 8


#: Of these some numbers may change: what is suppressed, clipped, dropped or easy stays so.
INPUTS = (
    *("ml_nms.boxes", "ml_nms.scores", "ml_nms.labels"),
    *("boxlist.clip_in", "convert_coco_xywh.in", "token_sigmoid_focal.logits"),
)


def test_geometry_with_any_changed_number_fails():
    recorded = json.loads(GEOMETRY.read_text())
    changed = 0
    for name, content in recorded.items():
        fields = content if isinstance(content, dict) else {"": content}
        for key, value in fields.items():
            full = f"{name}.{key}"
            if key in fine_geometry.NOTES or full in (*INPUTS, *fine_geometry.SET_ASIDE):
                continue
            wrong = with_one_change(value)
            comparison = Comparison(full)
            entry = content | {key: wrong} if key else wrong
            compare_part(comparison, name, {name: entry})
            assert failures(comparison), full
            changed += 1
    assert changed > 50


def test_geometry_of_other_names_fails(tmp_path):
    recorded = json.loads(GEOMETRY.read_text())
    recorded["boxlist"]["mirrored"] = recorded["boxlist"].pop("hflip")
    recorded["something"] = {"value": 1.0, "note": "never seen"}
    comparison = compare_geometry(write(tmp_path / GEOMETRY.name, recorded))
    assert "boxlist: hflip is missing" in " ".join(failures(comparison))
    assert {"boxlist.mirrored", "something.value"} <= set(comparison.not_compared)


def test_the_suppression_that_is_set_aside_is_one_of_rounding():
    """What was recorded is what float32 gives at an IoU of exactly the threshold."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 6.0], [50.0, 50.0, 60.0, 60.0]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert nms(boxes, scores, 0.6).tolist() == [0, 2]
    assert nms(boxes.double(), scores.double(), 0.6).tolist() == [0, 1, 2]


def test_texts_equal_what_is_recorded():
    comparison = compare_text(TEXT)
    assert comparison.ok, str(comparison)
    assert {name: group.count for name, group in comparison.groups.items()} == {
        "positive maps": 8,
        "tokens": 21,
        "rows divided by their sums": 32,
        "prompts": 5,
        "tokens of labels": 102,
        "published tokens of labels": 102,
    }


def _change_maps(content):
    content["positive_map"]["cases"][5]["positive_tokens"][2] = [3, 4]


def _change_values(content):
    content["positive_map"]["cases"][1]["normalised_value"][1] = 0.2501


def _change_spans(content):
    content["positive_map"]["cases"][0]["spans"][3] = [[7, 18]]


def _change_characters(content):
    content["positive_map"]["cases"][3]["char_to_token"][3] = 2


def _change_labels(content):
    content["detection_queries"][0]["label_to_tokens"]["31"] = [71]


def _change_caption(content):
    content["detection_queries"][1]["caption"] += "."


def _rename(content):
    content["detection_queries"][3]["text"] = content["detection_queries"][3].pop("caption")


def _add(content):
    content["positive_map"]["cases"][2]["something"] = 1


def _add_a_part(content):
    content["other"] = [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change_maps, "positive_map.5.positive_tokens"),
        (_change_values, "positive_map.1 box 1"),
        (_change_spans, "positive_map.0.positive_tokens"),
        (_change_characters, "positive_map.3.char_to_token"),
        (_change_labels, "detection_queries.coco80 label 31"),
        (_change_caption, "detection_queries.lvis_style_clean_name.caption"),
        (_rename, "'caption' is missing"),
        (_add, "positive_map.2.something"),
        (_add_a_part, "other"),
    ],
)
def test_changed_texts_fail(tmp_path, change, message):
    content = json.loads(TEXT.read_text())
    change(content)
    comparison = compare_text(write(tmp_path / TEXT.name, content))
    assert not comparison.ok
    assert message in " ".join([*failures(comparison), *comparison.not_compared])


@pytest.mark.skipif(not ROBERTA.exists(), reason="RoBERTa's vocabulary is absent")
def test_recorded_tokens_are_those_of_the_vocabulary():
    tokenizer = Tokenizer.from_vocabulary(ROBERTA / "vocab.json", ROBERTA / "merges.txt")
    recorded = recorded_tokens()
    for text in recorded.texts:
        for max_tokens in (None, fine_text.MAX_TOKENS):
            ours = tokenizer.encode(text, max_tokens=max_tokens)
            assert ours == recorded.encode(text, max_tokens=max_tokens), text
    vocabulary = json.loads(tokenizer.to_json())["model"]["vocab"]
    assert recorded.token_ids.items() <= vocabulary.items()


def test_a_text_without_recorded_tokens_fails(monkeypatch):
    texts = dict(recorded_tokens().texts)
    del texts["café crème ☕ naïve résumé"]
    monkeypatch.setattr(recorded_tokens(), "texts", texts)
    assert any("café crème" in failure for failure in failures(compare_text(TEXT)))


def test_groups_equal_what_is_recorded():
    comparison = compare_groups(GROUPS)
    assert comparison.ok, str(comparison)
    counts = [group.count for group in comparison.groups.values()]
    assert counts == [741, 741, 774, 774, 786, 786]


def _groups_with(tmp_path, change) -> list[str]:
    content = json.loads(GROUPS.read_text())
    change(content)
    return failures(compare_groups(write(tmp_path / GROUPS.name, content)))


def test_changed_groups_fail(tmp_path):
    name = "rpn.head.bias0"
    found = _groups_with(tmp_path, lambda content: content["coco_ft"].update({name: [1e-5, 0.0]}))
    assert [failure.split(":")[0] for failure in found] == [name]
    found = _groups_with(tmp_path, lambda content: content["refcoco"].update({name: [2e-5, 1e-4]}))
    assert [failure.split(":")[0] for failure in found] == [name]
    found = _groups_with(tmp_path, lambda content: content["pretrain"].pop(name))
    assert [failure.split(":")[0] for failure in found] == [f"{name} is trained"]

    def rename(content):
        content["pretrain"]["rpn.head.bias_zero"] = content["pretrain"].pop(name)

    assert len(_groups_with(tmp_path, rename)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"bias_lr_multiplier": 1.0},
        {"decay_vectors": False},
        {"text_lr_multiplier": 1.0},
        {"frozen": ()},
        {"frozen": ("backbone.image.patch_embedding",)},
        {"head_lr_multiplier": 5.0},
        {"cross_modal_lr_multiplier": 5.0},
        {"weight_decay": 1e-4},
    ],
    ids=str,
)
def test_groups_of_other_settings_fail(monkeypatch, change):
    run = fine_groups.RUNS["pretrain"]()
    other = dataclasses.replace(run, optim=dataclasses.replace(run.optim, **change))
    monkeypatch.setitem(fine_groups.RUNS, "pretrain", lambda: other)
    comparison = compare_groups(GROUPS)
    assert failures(comparison)
    assert all(
        name.startswith("pretrain") or not group.failures
        for name, group in comparison.groups.items()
    )
