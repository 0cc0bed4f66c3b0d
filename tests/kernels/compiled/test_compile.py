"""Launches compile with the signature that Triton itself would use."""

import dataclasses

import pytest

from tests.kernels.compiled.compile import CHIPS, compile_launch
from tests.kernels.compiled.sample_kernels import meta, sum_launch


def signature(compiled):
    """Parameter types without names, from the first line of the function."""
    (line,) = [line for line in compiled.stages["ttir"].splitlines() if "tt.func" in line]
    return line


def with_arguments(launch, **arguments):
    return dataclasses.replace(launch, arguments={**launch.arguments, **arguments})


def test_types_divisibility_and_constant_ones():
    launch = sum_launch(3)
    line = signature(compile_launch(launch, CHIPS["sm_90"]))
    assert "%rows: !tt.ptr<f32> {tt.divisibility = 16 : i32}" in line
    assert "%width: i32 {tt.divisibility = 16 : i32}" in line
    assert "%count: i32 loc" in line
    assert "%offset: f32" in line
    one = compile_launch(sum_launch(1), CHIPS["sm_90"])
    assert "%count" not in signature(one)
    assert one.constants["count"] == 1


def test_large_integers_and_misaligned_pointers():
    shifted = meta(4 * 1024 + 1)[1:]
    launch = with_arguments(sum_launch(3), rows=shifted, width=2**31)
    line = signature(compile_launch(launch, CHIPS["sm_90"]))
    assert "%rows: !tt.ptr<f32> loc" in line
    assert "%width: i64 {tt.divisibility = 16 : i32}" in line


def test_omitted_tensors_are_constants():
    compiled = compile_launch(sum_launch(3), CHIPS["sm_90"])
    assert compiled.constants["more"] is None
    assert "%more" not in signature(compiled)
    given = with_arguments(sum_launch(3), more=meta(1024))
    assert "%more: !tt.ptr<f32>" in signature(compile_launch(given, CHIPS["sm_90"]))


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_every_chip_compiles(chip):
    compiled = compile_launch(sum_launch(3), chip)
    assert ("hsaco" if chip.backend == "hip" else "cubin") in compiled.stages
    last = compiled.stages["amdgcn" if chip.backend == "hip" else "ptx"]
    assert chip.name in last


def test_interpreted_kernels_are_rejected():
    with pytest.raises(TypeError, match="TRITON_INTERPRET"):
        compile_launch(dataclasses.replace(sum_launch(3), kernel=len), CHIPS["sm_90"])
