"""`fiber tune` without a GPU, with a fake timer and device."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("triton")

from fiber.cli import main
from fiber.kernels.runtime import tiles, timer, tune

META = torch.device("meta")
CHIP = {"chip": "sm_90", "triton": "3.9"}


class FakeMeasure:
    """Fake times: the given number of warps is the fastest, and some candidates fail."""

    def __init__(self, warps: int, broken=lambda each: False) -> None:
        self.warps, self.broken, self.cases = warps, broken, []

    def __call__(self, case):
        self.cases.append(case.name)
        launches, results = case.plan()
        assert results
        if any(self.broken(each) for each in launches):
            raise ValueError("failed to run: too much shared memory")
        return sum(1.0 + abs(each.num_warps - self.warps) for each in launches)


@pytest.fixture
def said():
    return []


def tuned(cases, measure, said):
    return tune.tune(cases, measure, said.append, **CHIP)


def test_fastest_sizes_of_every_kernel_are_kept(said):
    # Window size 24 is the smallest whose forward pass loops over tiles.
    lines = tuned(tune.all_cases(META, [12, 18, 24], [torch.bfloat16]), FakeMeasure(4), said)
    kernels = {line["kernel"] for line in tiles.packaged_lines()}
    assert {line["kernel"] for line in lines} == kernels == set(tune.CANDIDATES)
    for line in lines:
        assert tiles._fault(line) is None
        assert (line["architecture"], line["triton"]) == ("sm_90", "3.9")
        if any("num_warps" in each for each in tune.CANDIDATES[line["kernel"]]):
            assert line["tile"]["num_warps"] == 4, line
    windows = {line["window"] for line in lines if line["kernel"] == "expand_bias"}
    assert windows == {12, 18, 24}
    assert {line["head_width"] for line in lines if line["kernel"].startswith("cross")} == {32, 64}


def test_small_speedups_are_ignored(said):
    (forward, _) = tune.window_cases(META, 12, torch.bfloat16)
    times = iter([1.0] + [0.98] * 100)
    lines = tuned([forward], lambda case: next(times), said)
    kept = tiles.best(
        tiles.packaged_lines(), "expand_bias", lines[0] | {"head_width": 0, "triton": "none"}
    )
    assert kept is not None
    assert lines[0]["tile"] == kept["tile"]


def test_failing_candidate_is_reported_and_skipped(said):
    (forward, _) = tune.window_cases(META, 12, torch.bfloat16)
    lines = tuned([forward], FakeMeasure(4, broken=lambda each: each.num_warps == 4), said)
    assert all(line["tile"]["num_warps"] != 4 for line in lines)
    assert any("num_warps=4" in line and "too much shared memory" in line for line in said)


def test_package_sizes_must_run(said):
    (forward, _) = tune.window_cases(META, 12, torch.bfloat16)
    with pytest.raises(ValueError, match="window size 12, bfloat16, forward, expand_bias"):
        tuned([forward], FakeMeasure(4, broken=lambda each: True), said)


def test_later_kernels_use_the_best_sizes_so_far(said):
    (_, backward) = tune.window_cases(META, 18, torch.bfloat16)
    seen = []

    def measure(case):
        launches, _ = case.plan()
        seen.append([each.num_warps for each in launches])
        return sum(1.0 + abs(each.num_warps - 8) for each in launches)

    tuned([backward], measure, said)
    # expand, expand transposed, by queries, by keys, by pairs, and the reduction.
    assert seen[-1][2:5] == [8, 8, 8]


def test_difference_is_relative_to_the_largest_element():
    wanted = torch.tensor([0.0, 2.0])
    assert tune.difference(wanted + torch.tensor([0.5, 0]), wanted) == 0.25
    assert tune.difference(wanted, wanted) == 0
    assert tune.difference(torch.full((2,), torch.nan), wanted) != 0


def test_command_requires_a_gpu(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["tune", "--output", str(tmp_path / "tiles.json")]) == 2
    assert "CUDA GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """Fake GPU for the command, on which every call takes a millisecond."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tune, "refusal", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(tiles, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(timer, "GpuTimer", lambda device: None)
    monkeypatch.setattr(tune, "GpuMeasure", lambda timer: FakeMeasure(4))
    every = tune.all_cases
    monkeypatch.setattr(tune, "all_cases", lambda device, *rest: every(META, *rest))
    return tmp_path / "fiber" / "tiles.json"


def test_command_writes_the_table_that_kernels_read(pretended, capsys):
    other = {"kernel": "gather_bias", "architecture": "sm_80", "triton": "3.9"}
    other["tile"] = {"heads": 8, "num_warps": 2, "num_stages": 1}
    pretended.parent.mkdir()
    pretended.write_text(tiles.written([other]))
    assert main(["tune", "--windows", "12"]) == 0
    lines = tiles.read(pretended)
    assert lines[0] == other
    assert {line["window"] for line in lines if "window" in line} == {12}
    assert "window size 12, bfloat16, forward, window_forward" in capsys.readouterr().err


def test_command_prints_the_table(pretended, capsys):
    assert main(["tune", "--windows", "12", "--print"]) == 0
    assert {line["architecture"] for line in json.loads(capsys.readouterr().out)} == {"sm_90"}
    assert not pretended.exists()


def test_command_reports_an_invalid_table_before_tuning(pretended, capsys):
    pretended.parent.mkdir()
    pretended.write_text("[\n{}]")
    assert main(["tune"]) == 2
    assert f"{pretended}, line 2: missing key 'kernel'" in capsys.readouterr().err
    assert pretended.read_text() == "[\n{}]"


def test_command_rejects_unknown_dtypes(pretended, capsys):
    assert main(["tune", "--dtypes", "float64"]) == 2
    assert "float64: expected one or more of bfloat16; float16; float32" in capsys.readouterr().err
