"""Bytes that kernels move, by the argument they belong to."""

from collections import Counter

import pytest

from tests.kernels.compiled.compile import CHIPS, compile_launch
from tests.kernels.compiled.instructions import work
from tests.kernels.compiled.sample_kernels import share_launch, some_launch, sum_launch
from tests.kernels.compiled.ttir import accesses

SM_90 = CHIPS["sm_90"]


def moved(launch, loaded=None):
    found = Counter()
    for access in accesses(compile_launch(launch, SM_90), loaded):
        found[access.argument, access.kind] += access.moved_bytes
    return dict(found)


@pytest.mark.parametrize("count", [1, 2, 7, 264])
def test_loops_are_counted_by_their_bounds(count):
    assert moved(sum_launch(count)) == {
        ("rows", "load"): count * 1024 * 4,
        ("out", "store"): 1024 * 4,
    }


def test_nested_loops_multiply():
    assert moved(sum_launch(7, passes=3))["rows", "load"] == 3 * 7 * 1024 * 4


def test_atomic_changes_read_and_write():
    assert moved(sum_launch(7, atomic=True))["out", "atomic"] == 2 * 1024 * 4


@pytest.mark.parametrize(("count", "parts"), [(10, 3), (2, 5)])
def test_programs_that_differ_are_counted_each(count, parts):
    assert moved(share_launch(count, parts)) == {
        ("rows", "load"): count * 1024 * 2,
        ("out", "store"): parts * 1024 * 4,
    }


def test_bounds_from_memory_need_a_value():
    with pytest.raises(RuntimeError, match="unknown bounds"):
        moved(some_launch())
    assert moved(some_launch(), loaded=40)["rows", "load"] == 40 * 1024 * 4


@pytest.mark.parametrize("launch", [sum_launch(7), sum_launch(264), share_launch(10, 3)])
def test_text_and_machine_code_agree(launch):
    compiled = compile_launch(launch, SM_90)
    found = moved(launch)
    counted = work(compiled)
    assert counted.loaded_bytes == found["rows", "load"]
    assert counted.stored_bytes == found["out", "store"]
