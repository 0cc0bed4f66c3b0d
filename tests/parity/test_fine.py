"""The detector equals the recorded tensors of the published one."""

from pathlib import Path

import pytest

from tests.parity.fine import compare_case

RECORDED = Path(__file__).parents[2] / ".." / "shared" / "golden" / "fine"


@pytest.mark.parametrize("case", ["tiny_v2", "tiny_v2_sharp", "tiny_v3"])
def test_recorded_case(case):
    path = RECORDED / f"{case}.json"
    if not path.exists():
        pytest.skip(f"no recorded tensors at {path}")
    comparison = compare_case(path)
    print(comparison)
    assert comparison.ok, str(comparison)
    assert not comparison.not_compared
