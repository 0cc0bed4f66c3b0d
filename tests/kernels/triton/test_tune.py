"""Candidates of `fiber tune` run in Triton's interpreter and give the same results."""

from __future__ import annotations

import pytest
import torch

from fiber.kernels.runtime import tune
from fiber.kernels.runtime.tune import Case

CPU = torch.device("cpu")
#: Windows whose rows are kept whole, and (float32) in tiles; sequences of one tile and of several.
SMALL = {
    "whole rows": lambda: tune.window_cases(CPU, 4, torch.float16, 1, 1, 1),
    "tiles": lambda: tune.window_cases(CPU, 4, torch.float32, 1, 1, 1),
    "cross attention": lambda: tune.cross_cases(
        CPU, torch.float16, to_text=((1, 40, 5),), to_image=((1, 5, 40),)
    ),
}


def tuned(cases: list[Case]) -> tuple[list[dict], list[str]]:
    said: list[str] = []
    measure = tune.GpuMeasure(lambda run: 1.0, lambda: None)
    return tune.tune(cases, measure, said.append, chip="none", triton="none"), said


@pytest.mark.slow
@pytest.mark.parametrize("cases", SMALL.values(), ids=SMALL)
def test_every_candidate_matches_the_package_sizes(cases):
    lines, said = tuned(list(cases()))
    assert lines
    refused = [line for line in said if line.startswith("  ")]
    assert not refused, refused


def test_wrong_results_and_errors_are_reported(monkeypatch):
    monkeypatch.setattr(
        tune, "CANDIDATES", {"expand_bias": [], "window_forward": [{"rows": 16, "num_warps": 2}]}
    )
    monkeypatch.setattr(tune, "STAGES", (2, 3))
    (forward, _) = SMALL["whole rows"]()
    plan, calls = forward.plan, []

    def corrupted():
        launches, results = plan()
        calls.append(launches)
        if len(calls) == 2:
            raise RuntimeError("out of resource: shared memory")
        if len(calls) > 2:
            launches = []
        return launches, results

    case = Case(forward.name, ("window_forward",), corrupted, 4, 32, torch.float16)
    _, said = tuned([case])
    assert "failed to run: out of resource: shared memory" in said[0]
    assert "result 0 differs by nan" in said[1]
