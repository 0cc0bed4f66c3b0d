"""The bench of the kernels compares before it times, and its gates can fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benches"))

import bench_kernels as bench

CALLS = {
    "shifted windows of an odd map": lambda: bench.window_call("odd", 1, (20, 26), 1, 6),
    "one window": lambda: bench.window_call("one", 2, (12, 12), 2, 0),
    "windows of 6": lambda: bench.window_call("six", 2, (12, 6), 2, 0, window=6, head_width=20),
    "image to text": lambda: bench.cross_call("a", 2, (13, 14), 2, 5, to_text=True, head_width=32),
    "text to image": lambda: bench.cross_call("b", 2, (13, 14), 2, 5, to_text=False, head_width=20),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_all_sides_compute_the_same(call):
    bench.check_alike(call())


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_side_that_computes_something_else_stops_the_bench(call, monkeypatch):
    for name in ("window_attention", "image_to_text_attention", "text_to_image_attention"):
        ours = getattr(bench.kernels, name)
        monkeypatch.setattr(
            bench.kernels, name, lambda *a, ours=ours, **k: ours(*a, **k) * (1 + 1e-4)
        )
    with pytest.raises(SystemExit, match="differs by"):
        bench.check_alike(call())


def test_every_call_of_the_model_is_there(monkeypatch):
    monkeypatch.setattr(bench, "window_call", lambda *a, **_: ("windows", *a))
    monkeypatch.setattr(bench, "cross_call", lambda *a, to_text, **_: ("cross", *a, to_text))
    calls = list(bench.calls())
    assert len(calls) == len(set(calls)) == (3 * 8 + 3 * 4 - 2) + 6
    assert ("windows", "800x1344, batch 1, stage 4, shift 6", 1, (25, 42), 32, 6) in calls


def test_gates_name_what_is_missed():
    def row(operation: str, fiber: float, eager: float, sdpa: float) -> dict:
        key = (operation, "forward", "a call")
        return {key: {"fiber": fiber, "eager": eager, "sdpa": sdpa}}

    good = row("windows", 1.0, 2.0, 1.1) | row("image to text", 1.0, 2.0, 1.4)
    assert bench.failures(good) == []
    slow_call = good | row("text to image", 4.0, 3.0, 4.0)
    assert any("0.75 of eager's time" in line for line in bench.failures(slow_call))
    short = good | row("text to image", 0.4, 0.3, 0.4)
    assert not any("of eager's time" in line for line in bench.failures(short))
    slow_mean = row("image to text", 1.0, 2.0, 1.2)
    assert bench.failures(slow_mean) == ["image to text, forward: 1.20 x sdpa, expected 1.3"]
