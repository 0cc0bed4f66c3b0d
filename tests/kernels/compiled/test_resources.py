"""Registers, spills, shared memory, and regressions from the table."""

import dataclasses
import re

import pytest
import torch

from fiber.kernels.runtime import tiles
from tests.kernels.compiled.cases import CALLS, planned
from tests.kernels.compiled.compile import CHIPS, compile_launch
from tests.kernels.compiled.resources import (
    Row,
    problems,
    read_table,
    regressions,
    resources,
    write_table,
)
from tests.kernels.compiled.sample_kernels import square_launch, sum_launch

ROW = Row("sum_rows", "three rows", "sm_90", "3.9", 4, 20, 1024)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_small_kernel_has_no_problems(chip):
    compiled = compile_launch(sum_launch(3), chip)
    taken = resources(compiled)
    assert 0 < taken.registers < 64
    assert problems(compiled, taken) == []


@pytest.mark.parametrize("name", ["sm_90", "gfx942"])
def test_atomics_are_detected(name):
    compiled = compile_launch(sum_launch(3, atomic=True), CHIPS[name])
    (problem,) = problems(compiled, resources(compiled))
    assert "expected no atomics" in problem


def test_spilled_registers_are_detected():
    compiled = compile_launch(square_launch(128, num_warps=1), CHIPS["sm_90"])
    taken = resources(compiled)
    assert taken.spill_bytes > 0
    assert any("registers spilled" in problem for problem in problems(compiled, taken))


def test_stack_frame_is_a_problem_only_if_accessed():
    touched = compile_launch(square_launch(128, num_warps=1), CHIPS["sm_90"])
    untouched = compile_launch(sum_launch(3), CHIPS["sm_90"])
    for compiled, expected in ((touched, ["8 bytes of local memory"]), (untouched, [])):
        taken = dataclasses.replace(resources(compiled), spill_bytes=0, stack_bytes=8)
        found = problems(compiled, taken)
        assert [text for text in expected if not any(text in each for each in found)] == []
        assert len(found) == len(expected)


def test_spilled_amd_registers_are_detected():
    compiled = compile_launch(sum_launch(3), CHIPS["gfx942"])
    text = compiled.stages["amdgcn"]
    assert len(re.findall(r"\.vgpr_spill_count:\s+0", text)) == 1
    text = re.sub(r"(\.vgpr_spill_count:\s+)0", r"\g<1>5", text)
    spilling = dataclasses.replace(compiled, stages=compiled.stages | {"amdgcn": text})
    assert resources(spilling).spill_bytes == 20


def test_excess_shared_memory_is_detected():
    compiled = compile_launch(sum_launch(3), CHIPS["sm_89"])
    taken = dataclasses.replace(resources(compiled), shared_bytes=99 * 1024 + 1)
    (problem,) = problems(compiled, taken)
    assert problem == ("sum_rows on sm_89: 101377 bytes of shared memory; the chip has 101376")


def test_regressions_name_the_resource():
    assert regressions([ROW], [ROW]) == []
    fewer = dataclasses.replace(ROW, registers=18)
    assert regressions([fewer], [ROW]) == []
    (text,) = regressions([ROW], [fewer])
    assert "sum_rows, three rows, sm_90, Triton 3.9: 20 registers, 18 in registers.csv" in text
    (text,) = regressions([dataclasses.replace(ROW, shared_bytes=2048)], [ROW])
    assert "2048 shared bytes, 1024 in registers.csv" in text


def test_missing_line_is_a_regression():
    (text,) = regressions([ROW], [dataclasses.replace(ROW, triton="3.7")])
    assert "not in registers.csv" in text


def test_table_keeps_other_versions_and_cases(tmp_path):
    path = tmp_path / "registers.csv"
    old = dataclasses.replace(ROW, triton="3.7", registers=30)
    other = dataclasses.replace(ROW, case="two rows")
    assert read_table(path) == []
    write_table([old, other], path)
    write_table([ROW], path)
    assert read_table(path) == [old, ROW, other]
    renamed = dataclasses.replace(ROW, kernel="sum_all_rows", registers=24)
    write_table([renamed], path)
    assert read_table(path) == [renamed, old, other]


@pytest.mark.parametrize(
    ("chip", "version", "call", "whole"),
    [
        ("sm_120", "3.7", "window 12 sized", False),
        ("sm_120", "3.7", "window 12 shifted", True),
        ("sm_120", "3.9", "window 12 sized", True),
        ("sm_90", "3.7", "window 12 sized", True),
    ],
)
def test_kernels_that_spill_are_not_selected(monkeypatch, chip, version, call, whole):
    monkeypatch.setattr(tiles, "triton_minor", lambda: version)
    launches = planned(lambda: CALLS[call].backward(torch.bfloat16), CHIPS[chip])
    names = {each.kernel.__name__ for each in launches}
    assert ("whole_backward" in names) == whole
    assert ("tiled_backward_keys" in names) != whole
