"""The integer instructions that steer loops, one by one."""

import pytest

from tests.kernels.compiled.sass import parse
from tests.kernels.compiled.semantics import results_of

MINUS_ONE = 0xFFFFFFFF
STATE = {
    "R1": 7,
    "R2": 5,
    "R3": MINUS_ONE,
    "R4": 0x80000000,
    "UR5": 9,
    "P0": True,
    "P1": False,
    "UP0": True,
    "R9": frozenset({"TID.X"}),
}

ONE_BY_ONE = [
    ("MOV R0, R1", [7]),
    ("IADD3 R0, R1, R2, UR5", [21]),
    ("IADD3 R0, P2, R3, R2, RZ", [4, True]),
    ("IADD3 R0, P2, R1, -R2, RZ", [2, True]),
    ("IADD3 R0, P2, R2, -R1, RZ", [MINUS_ONE - 1, False]),
    ("IADD3 R0, P2, R2, -0x4, RZ", [1, True]),
    ("IADD3.X R0, R2, -0x1, RZ, P1, !PT", [4]),
    ("IADD3.X R0, R2, -0x1, RZ, P0, !PT", [5]),
    ("VIADD R0, R1, 0xfffffffe", [5]),
    ("IMAD R0, R1, R2, UR5", [44]),
    ("IMAD.MOV.U32 R0, RZ, RZ, R2", [5]),
    ("IMAD.X R0, R1, 0x1, R2, P0", [13]),
    ("IMAD.HI.U32 R0, R4, 0x6, RZ", [3]),
    ("IMAD.WIDE R6, R3, 0x4, RZ", [0xFFFFFFFC, MINUS_ONE]),
    ("IMAD.WIDE.U32 R6, R3, 0x4, RZ", [0xFFFFFFFC, 3]),
    ("ISETP.GE.AND P2, PT, R1, 0x7, PT", [True]),
    ("ISETP.LT.AND P2, PT, R3, R1, PT", [True]),
    ("ISETP.LT.U32.AND P2, PT, R3, R1, PT", [False]),
    ("ISETP.NE.OR P2, PT, R1, 0x7, P0", [True]),
    ("ISETP.GE.AND P2, PT, R1, 0x7, !P0", [False]),
    ("ISETP.GT.AND.EX P2, PT, RZ, RZ, PT, P0", [True]),
    ("ISETP.GT.AND.EX P2, PT, R1, RZ, PT, P1", [True]),
    ("ISETP.NE.U32.OR.EX P2, PT, RZ, RZ, P1, P1", [False]),
    ("PLOP3.LUT P2, PT, PT, PT, UP0, 0x80, 0x0", [True]),
    ("PLOP3.LUT P2, PT, PT, PT, UP0, 0x40, 0x0", [False]),
    ("PLOP3.LUT P2, PT, PT, PT, PT, 0x8, 0x0", [False]),
    ("LOP3.LUT R0, R1, R2, RZ, 0xc0, !PT", [5]),
    ("LOP3.LUT P2, RZ, R1, 0x8, RZ, 0xc0, !PT", [False]),
    ("SHF.L.U32 R0, R1, 0x2, RZ", [28]),
    ("SHF.R.S32.HI R0, RZ, 0x1f, R4", [MINUS_ONE]),
    ("SHF.R.U32.HI R0, RZ, 0x1f, R4", [1]),
    ("SHF.L.U64.HI R0, R4, 0x1, R2", [11]),
    ("LEA R0, R1, R2, 0x3", [61]),
    ("SEL R0, R1, R2, !P0", [5]),
    ("IABS R0, R3", [1]),
    ("IMNMX R0, R1, R3, PT", [MINUS_ONE]),
    ("IMNMX R0, R1, R3, !PT", [7]),
    ("VIADDMNMX.U32 R0, R1, R2, 0xb, PT", [11]),
    ("CS2R R0, SRZ", [0, 0]),
    ("HFMA2.MMA R0, -RZ, RZ, 0, 1.370906829833984375e-06", [0x17]),
    ("HFMA2.MMA R0, -RZ, RZ, 1.875, 0", [0x3F800000]),
    ("ULDC.64 UR6, c[0x0][0x210]", [3, 4]),
]


@pytest.mark.parametrize(("text", "expected"), ONE_BY_ONE, ids=[text for text, _ in ONE_BY_ONE])
def test_results(text, expected):
    (op,) = parse(f"        /*0000*/                   {text} ;\n").instructions
    assert results_of(op, STATE, {0x210: 3, 0x214: 4}) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("IADD3 R0, R1, R9, RZ", "TID.X"),
        ("MUFU.RCP R0, R1", "MUFU.RCP at 0x0"),
        ("HFMA2.MMA R0, R1, R2, RZ, RZ", "HFMA2.MMA at 0x0"),
        ("IADD3 R0, R1, R8, RZ", "R8, never written"),
        ("ULDC UR6, c[0x0][0x218]", "parameter word 0x218"),
    ],
)
def test_what_is_not_known_says_why(text, reason):
    (op,) = parse(f"        /*0000*/                   {text} ;\n").instructions
    assert results_of(op, STATE, {}) == [frozenset({reason})]


@pytest.mark.parametrize(
    ("text", "results"),
    [
        ("LDG.E.128 R4, desc[UR4][R8.64]", ("R4", "R5", "R6", "R7")),
        (
            "HGMMA.64x32x16.F32.BF16 R72, R104, gdesc[UR8], R72",
            tuple(f"R{72 + i}" for i in range(16)),
        ),
        ("HMMA.16816.F32.BF16 R8, R4, R6, RZ", ("R8", "R9", "R10", "R11")),
        ("STG.E.64 desc[UR12][R40.64], R50", ()),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", ()),
        ("P2R R37, PR, RZ, 0x40", ("R37",)),
        ("SHFL.BFLY PT, R109, R118, 0x2, 0x1f", ("R109",)),
        ("ISETP.GE.AND P0, P1, R3, R4, PT", ("P0", "P1")),
    ],
)
def test_what_an_instruction_writes(text, results):
    (op,) = parse(f"        /*0000*/                   {text} ;\n").instructions
    assert op.results == results
