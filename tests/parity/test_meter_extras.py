"""METER's recorded extras are equal, and every change of them is found."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fiber.data import Tokenizer
from tests.golden import METER
from tests.parity.__main__ import main
from tests.parity.meter_extras import compare_extras, sentence_tokenizer

pytestmark = pytest.mark.oldest

ROBERTA = Path(__file__).parents[2] / "../shared/assets/roberta-base"
#: What is compared of each kind.
COUNTS = {
    "transforms": 6,
    "transforms, 8 bits (integers)": 6,
    "opaque RGBA": 2,
    # The names, and three magnitudes of fourteen operations.
    "RandAugment, arguments": 43,
    # Fourteen operations, five of them in both directions.
    "RandAugment (integers)": 19,
    "RandAugment, chain": 1,
    "RandAugment, chain, 8 bits (integers)": 1,
    "RandAugment, drawn chain": 1,
    "RandAugment, drawn chain, 8 bits (integers)": 1,
    "tokens (integers)": 1,
    # Nine counts and three, and two shares of both texts.
    "masked positions, deviations": 16,
    "learning rates": 22,
    "position tables": 3,
    "position tables, exact": 6,
    "position tables, sums": 6,
}


def test_extras_equal_what_is_recorded():
    comparison = compare_extras(METER / "extras.json")
    assert comparison.ok, str(comparison)
    assert {name: group.count for name, group in comparison.groups.items()} == COUNTS
    assert not comparison.set_aside


@pytest.fixture
def folder(tmp_path):
    for name in ("extras.json", "extras.safetensors"):
        shutil.copyfile(METER / name, tmp_path / name)
    return tmp_path


def test_every_changed_tensor_fails(folder):
    tensors = load_file(folder / "extras.safetensors")
    outputs = [name for name in tensors if not name.startswith("picture.")]
    for name in outputs:
        values = tensors[name].reshape(-1)
        # Another byte, or the change of one byte in eight bits.
        values[len(values) // 2] += 1 if name.startswith("randaug.") else 0.02
    save_file(tensors, folder / "extras.safetensors")
    comparison = compare_extras(folder / "extras.json")
    failures = [text for group in comparison.groups.values() for text in group.failures]
    assert {text.split(":")[0] for text in failures} == set(outputs)


def test_every_changed_number_fails(folder):
    content = json.loads((folder / "extras.json").read_text())
    content["clip.tall: RGBA detour changes an opaque picture by"] = 0.1
    content["randaug"]["Posterize"][2] = 1.3
    content["clip_randaug.wide.seed3"] = ["Contrast", "Posterize"]
    content["tokenizer example"]["ids"][3] += 1
    collator = next(name for name in content if name.startswith("whole-word"))
    content[collator]["picked_counts_of_4000"]["2"] -= 200
    content["schedule, 20 steps, warm-up 2"][7] += 1e-9
    content["position table 288 -> 384"]["l2"] *= 1.00001
    content["unheard of"] = 1
    (folder / "extras.json").write_text(json.dumps(content))
    comparison = compare_extras(folder / "extras.json")
    failed = {name for name, group in comparison.groups.items() if group.failures}
    assert failed >= {
        *("opaque RGBA", "RandAugment, arguments", "RandAugment, chain", "tokens (integers)"),
        *("masked positions, deviations", "learning rates", "position tables, sums"),
    }
    assert comparison.not_compared == ["unheard of"]


def test_missing_entries_are_named(folder):
    tensors = load_file(folder / "extras.safetensors")
    del tensors["randaug.ShearX.minus"], tensors["position.288_576"]
    save_file(tensors, folder / "extras.safetensors")
    failures = compare_extras(folder / "extras.json").groups["names"].failures
    assert [failure.split(" is ")[0] for failure in failures] == [
        *("randaug.ShearX.minus", "position.288_576")
    ]


def test_the_command_reads_extras(capsys, monkeypatch):
    from tests.parity import meter

    monkeypatch.setattr(meter, "TASKS", {})
    assert main(["meter", str(METER)]) == 1
    printed = capsys.readouterr().out
    for name in COUNTS:
        assert any(line.startswith(f"  {name} ") for line in printed.splitlines()), name
    assert "NOT COMPARED: extras" not in printed


@pytest.mark.skipif(not ROBERTA.exists(), reason="RoBERTa's vocabulary is absent")
def test_the_excerpt_is_one_of_the_vocabulary():
    whole = Tokenizer.from_vocabulary(ROBERTA / "vocab.json", ROBERTA / "merges.txt")
    text = json.loads((METER / "extras.json").read_text())["tokenizer example"]["text"]
    assert sentence_tokenizer().encode(text) == whole.encode(text)
    own, all_ = (json.loads(each.to_json())["model"] for each in (sentence_tokenizer(), whole))
    assert own["vocab"].items() <= all_["vocab"].items()
    places = [all_["merges"].index(merge) for merge in own["merges"]]
    assert places == sorted(places)
