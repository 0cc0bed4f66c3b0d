"""What is recorded beside the fine cases is compared, and what differs in it is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fiber.models import dyhead
from tests.parity import fine_units
from tests.parity.comparison import Comparison
from tests.parity.fine_units import compare_units

RECORDED = Path(__file__).parents[2] / "../shared/golden/fine"
needs_recorded = pytest.mark.skipif(not RECORDED.exists(), reason=f"{RECORDED} is absent")
UNITS = RECORDED / "units_deform_dyconv.safetensors"


def failures(comparison: Comparison) -> list[str]:
    return [failure for group in comparison.groups.values() for failure in group.failures]


@needs_recorded
def test_units_equal_what_is_recorded():
    comparison = compare_units(UNITS)
    assert comparison.ok, str(comparison)
    assert {name: group.count for name, group in comparison.groups.items()} == {
        "convolutions": 2,
        "block": 4,
    }


@needs_recorded
def test_units_with_any_changed_value_fail(tmp_path):
    recorded = load_file(UNITS)
    for name, tensor in recorded.items():
        changed = tensor.clone()
        # The middle of a map, or the offset of a middle tap; not all offsets are read.
        place = 254 if name.endswith("offset_mask_raw") else changed.numel() // 2
        changed.view(-1)[place] += 1e-2
        save_file(recorded | {name: changed}, tmp_path / UNITS.name)
        assert not compare_units(tmp_path / UNITS.name).ok, name


@needs_recorded
def test_units_with_a_renamed_tensor_fail(tmp_path):
    recorded = load_file(UNITS)
    recorded["dyconv.other.2"] = recorded.pop("dyconv.out.2")
    save_file(recorded, tmp_path / UNITS.name)
    comparison = compare_units(tmp_path / UNITS.name)
    assert any("dyconv.out.2 is missing" in failure for failure in failures(comparison))
    assert "dyconv.other.2" in comparison.not_compared


@needs_recorded
def test_offsets_that_are_cropped_instead_of_read_again_fail(monkeypatch):
    def crop(values, size):
        return values[..., : size[0], : size[1]]

    for module in (dyhead, fine_units):
        monkeypatch.setattr(module, "reread", crop)
    found = failures(compare_units(UNITS))
    assert any("out_mismatched_offset" in failure for failure in found)
    assert any("dyconv.out.0" in failure for failure in found)
