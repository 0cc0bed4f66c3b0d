"""The package's own kernels against their gates."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.compiled import gates
from tests.kernels.compiled.__main__ import main
from tests.kernels.compiled.cases import CALLS, GATED, all_cases, planned, quick_cases
from tests.kernels.compiled.compile import CHIPS, compile_launch
from tests.kernels.compiled.instructions import forbidden
from tests.kernels.compiled.resources import read_table

ROOT = Path(__file__).parents[3]
SM_90 = CHIPS["sm_90"]


def test_instructions_stay_within_the_budget():
    assert gates.instructions_report().failures == []


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_too_many_instructions_fail(monkeypatch, name):
    monkeypatch.setitem(gates.BUDGETS, name, (1000, 1.0))
    (failure,) = gates.instructions_report().failures
    assert failure.startswith(f"{name}: ")
    assert "of 1000; expected at most 1.0" in failure


def test_there_are_no_atomics():
    for launches in gates.gated_passes(SM_90).values():
        for launch in launches:
            assert forbidden(compile_launch(launch, SM_90)) == []


def test_atomics_are_seen():
    launches = planned(lambda: GATED.backward(torch.bfloat16, atomic_bias=True), SM_90)
    wrong = [each for launch in launches for each in forbidden(compile_launch(launch, SM_90))]
    assert any("RED" in each or "ATOM" in each for each in wrong)


@pytest.mark.parametrize("chip", ["sm_90", "gfx942"])
def test_resources_of_the_gated_calls(chip):
    report, rows = gates.resources_report(quick_cases(), [CHIPS[chip]], lambda line: None)
    assert report.failures == []
    assert {row.kernel for row in rows} >= {"whole_forward", "whole_backward", "attend"}


def test_the_table_holds_no_line_without_a_case():
    lines = read_table()
    assert {line.case for line in lines} <= {case.name for case in all_cases()}
    assert {line.chip for line in lines} <= set(CHIPS)


def test_every_call_is_compiled_forward_and_backward():
    assert {(case.call, case.backward) for case in all_cases()} == {
        (call, backward) for call in CALLS for backward in (False, True)
    }


def test_the_command_fails_with_a_gate(monkeypatch, capsys):
    assert main(["instructions"]) == 0
    assert capsys.readouterr().out.endswith("all gates hold\n")
    monkeypatch.setitem(gates.BUDGETS, "forward", (1000, 1.0))
    assert main(["instructions"]) == 1
    assert "FAILED forward: " in capsys.readouterr().out


def test_the_command_names_its_tables():
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compiled", "speed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "no such table: speed; there are resources, instructions, bytes" in done.stderr
