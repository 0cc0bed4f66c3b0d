"""Executed instructions, counted with loops as the assembler left them."""

import dataclasses

import pytest

from tests.kernels.compiled.compile import CHIPS, compile_launch
from tests.kernels.compiled.control import UnknownLoopError, execute
from tests.kernels.compiled.instructions import forbidden, work
from tests.kernels.compiled.sample_kernels import (
    share_launch,
    some_launch,
    square_launch,
    sum_launch,
)
from tests.kernels.compiled.sass import parse

SM_90 = CHIPS["sm_90"]


def counted(launch, loaded=None):
    return work(compile_launch(launch, SM_90), loaded)


# The assembler unrolls the loop four times, with two and one more behind: 264 rows use the first,
# 3 only the others, and with one row nothing is left of the loop.
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 264])
def test_every_row_is_loaded_once(count):
    found = counted(sum_launch(count))
    assert found.loaded_bytes == count * 1024 * 4
    assert found.stored_bytes == 1024 * 4


@pytest.mark.parametrize(("count", "parts"), [(10, 3), (9, 3), (2, 5)])
def test_programs_that_differ_are_counted_each(count, parts):
    found = counted(share_launch(count, parts))
    assert found.loaded_bytes == count * 1024 * 2
    assert found.stored_bytes == parts * 1024 * 4


def test_a_doubled_inner_loop_doubles_the_count():
    once, twice = (counted(sum_launch(500, passes=passes)) for passes in (1, 2))
    assert twice.loaded_bytes == 2 * once.loaded_bytes
    assert 1.95 < twice.total / once.total < 2.05


def test_loops_that_hang_on_memory_need_a_value():
    with pytest.raises(UnknownLoopError, match="hangs on load at 0x"):
        counted(some_launch())
    # Every thread of 4 programs of 4 warps reads the number.
    lengths = 4 * 4 * 32 * 4
    assert counted(some_launch(), loaded=40).loaded_bytes == 40 * 1024 * 4 + lengths


def test_local_memory_and_atomics_are_seen():
    assert forbidden(compile_launch(sum_launch(3), SM_90)) == []
    texts = forbidden(compile_launch(square_launch(128, num_warps=1), SM_90))
    assert [text.split()[-3] for text in texts] == ["LDL;", "STL;"]
    atomic = compile_launch(sum_launch(3, atomic=True), SM_90)
    (text,) = forbidden(atomic)
    assert "REDG; expected none" in text
    assert forbidden(atomic, atomics=True) == []


def test_another_chip_is_refused():
    with pytest.raises(ValueError, match="no machine code of gfx942"):
        work(compile_launch(sum_launch(3), CHIPS["gfx942"]))


LISTING = """
        /*0000*/                   UMOV UR4, 0x0 ;
        /*0010*/                   S2R R2, SR_CTAID.X ;
.L_x_0:
        /*0020*/                   UIADD3 UR4, UR4, 0x3, URZ ;
        /*0030*/               @P1 FADD R0, R0, R1 ;
        /*0040*/                   UISETP.GE.U32.AND UP0, UPT, UR4, 0x9, UPT ;
        /*0050*/                   PLOP3.LUT P0, PT, PT, PT, UP0, 0x80, 0x0 ;
        /*0060*/              @!P0 BRA `(.L_x_0) ;
        /*0070*/                   ISETP.GE.AND P2, PT, R2, 0x2, PT ;
        /*0080*/               @P2 EXIT ;
        /*0090*/                   S2R R3, SR_TID.X ;
        /*00a0*/                   ISETP.GE.AND P3, PT, R3, 0x2, PT ;
        /*00b0*/               @P3 BRA `(.L_x_1) ;
        /*00c0*/                   FADD R0, R0, R1 ;
.L_x_1:
        /*00d0*/                   EXIT ;
.L_x_2:
        /*00e0*/                   BRA `(.L_x_2);
"""


def test_a_listing_is_run_as_it_stands():
    program = parse(LISTING)
    counts = execute(program, (5,), {}).counts
    by_text = {f"{op.address:x}": counts[index] for index, op in enumerate(program.instructions)}
    # Three rounds in each of five programs; what stands under a predicate counts.
    assert by_text["30"] == 3 * 5
    # Two programs do not end at the first exit; the branch that hangs on the thread is not taken.
    assert by_text["c0"] == 2
    assert by_text["d0"] == 2
    assert by_text["e0"] == 0


def test_the_count_is_that_of_all_warps():
    launch = sum_launch(5)
    one = counted(launch)
    more = counted(dataclasses.replace(launch, grid=(8,)))
    assert more.total == 2 * one.total
