"""The package's kernels pass the gates."""

import pytest
import torch

from tests.kernels.compiled import __main__ as command
from tests.kernels.compiled import cases, gates, resources
from tests.kernels.compiled.cases import CALLS, all_cases, planned, quick_cases
from tests.kernels.compiled.compile import CHIPS, compile_launch

SM_90 = CHIPS["sm_90"]


@pytest.mark.parametrize("chip", ["sm_90", "gfx942"])
@pytest.mark.parametrize("case", quick_cases(), ids=lambda case: case.name)
def test_resources_of_the_quick_cases(case, chip):
    failures, rows = gates.check_resources([case], [CHIPS[chip]], lambda line: None)
    assert failures == []
    assert rows


def test_quick_cases_have_the_main_kernels():
    names = {launch.kernel.__name__ for case in quick_cases() for launch in case.launches(SM_90)}
    assert names >= {"whole_forward", "whole_backward", "attend"}


def test_atomics_fail():
    call = CALLS["window 12 shifted"]
    launches = planned(lambda: call.backward(torch.bfloat16, atomic_bias=True), SM_90)
    found = []
    for launch in launches:
        compiled = compile_launch(launch, SM_90)
        found += resources.problems(compiled, resources.resources(compiled))
    assert any("expected no atomics" in problem for problem in found)


def test_every_table_line_has_a_case():
    lines = resources.read_table()
    assert {line.case for line in lines} <= {case.name for case in all_cases()}
    assert {line.chip for line in lines} <= set(CHIPS)


def test_every_call_has_forward_and_backward_cases():
    assert {(case.call, case.backward) for case in all_cases()} == {
        (call, backward) for call in CALLS for backward in (False, True)
    }


def test_command_fails_if_a_gate_fails(monkeypatch, capsys):
    (case,) = [case for case in quick_cases() if case.call == "image to text" and not case.backward]
    monkeypatch.setattr(cases, "quick_cases", lambda: [case])
    monkeypatch.setattr(case.__class__, "chips", lambda self, chips: [SM_90])
    assert command.main(["--quick"]) == 0
    assert capsys.readouterr().out.endswith("all gates hold\n")
    monkeypatch.setattr(gates, "read_table", list)
    assert command.main(["--quick"]) == 1
    assert "FAILED attend, image to text" in capsys.readouterr().out
