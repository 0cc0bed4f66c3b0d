"""What the integer instructions that steer loops do, on values that may be unknown.

A value is an int of 32 bits without sign (a predicate: a bool) or `Unknown`, the set of what it
depends on. Instructions that are not described here make their results unknown.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from tests.kernels.compiled.sass import Instruction

#: What an unknown value depends on, such as {"CTAID.X"} or {"load at 0x4f0"}.
Unknown = frozenset[str]
Value = int | bool | Unknown
State = dict[str, Value]

MASK = 0xFFFFFFFF


def read(operand: str, state: State, constants: Mapping[int, int]) -> Value:
    """Read a 32-bit operand: register, predicate, number, or word of the kernel's parameters."""
    kind, sign, content = _parsed(operand)
    if kind == "number":
        return content
    if kind == "register":
        value = state.get(content)
        if value is None:
            return frozenset({f"{content}, never written"})
    elif kind == "parameter":
        value = constants.get(content, frozenset({f"parameter word 0x{content:x}"}))
    else:
        return frozenset({f"operand {operand}"})
    if not sign or isinstance(value, frozenset):
        return value
    if sign == "!":
        return not value
    # Not cut to 32 bits: the carry of a - b is that of a + ~b + 1.
    return (value ^ MASK) + (1 if sign == "-" else 0)


@cache
def _parsed(operand: str) -> tuple[str, str, Any]:
    """Say what an operand is: its kind, the sign before it, and which or what."""
    sign = operand[0] if operand[0] in "!-~" else ""
    bare = operand.removeprefix(sign)
    if bare in {"PT", "UPT"}:
        return "number", "", sign != "!"
    if bare in {"RZ", "URZ", "SRZ"}:
        return "number", "", MASK if sign == "~" else 0
    if re.fullmatch(r"0x[0-9a-f]+", bare):
        value = int(bare, 16)
        return "number", "", (-value if sign == "-" else value) & MASK
    constant = re.fullmatch(r"c\[0x0\]\[0x([0-9a-f]+)\]", bare)
    if constant:
        return "parameter", sign, int(constant[1], 16)
    if re.fullmatch(r"U?[RP]\d+", bare):
        return "register", sign, bare
    return "other", sign, None


def signed(value: int) -> int:
    """Read 32 bits as a number with a sign."""
    return ((value & MASK) ^ 0x80000000) - 0x80000000


def _add(op: Instruction, sources: list[int]) -> list[int]:
    """IADD3 with carries out, and with carries in as .X: the last sources are predicates then."""
    total = sum(sources)
    # The second carry belongs to sums of three large numbers, which loops do not need.
    return [total & MASK, total >> 32 & 1, total >> 33 & 1]


def _multiply_add(op: Instruction, sources: list[int]) -> list[int]:
    a, b, c, *carry = sources
    if "HI" in op.parts:
        product = a * b if "U32" in op.parts else signed(a) * signed(b)
        return [(product >> 32) + c & MASK]
    return [(a * b + c + sum(carry)) & MASK]


def _multiply_add_wide(op: Instruction, sources: list[int]) -> list[int]:
    a, b, low, high = sources
    product = a * b if "U32" in op.parts else signed(a) * signed(b)
    total = product + (high << 32) + low
    return [total & MASK, total >> 32 & MASK]


def _compare(op: Instruction, sources: list[int]) -> list[int]:
    """ISETP.CMP[.U32].BOOL[.EX]: of 64 bits where .EX brings the answer of the low half."""
    a, b, other, *low = sources
    if "U32" not in op.parts:
        a, b = signed(a), signed(b)
    a, b = (a & MASK, b & MASK) if "U32" in op.parts else (a, b)
    kind = op.parts[0]
    answer = {
        "LT": a < b,
        "LE": a <= b,
        "GT": a > b,
        "GE": a >= b,
        "EQ": a == b,
        "NE": a != b,
    }[kind]
    if "EX" in op.parts:
        (low_half,) = low
        if kind == "NE":
            answer = answer or bool(low_half)
        elif kind == "EQ":
            answer = answer and bool(low_half)
        else:
            answer = bool(low_half) if a == b else answer
    return [_joined(op, answer, other), _joined(op, not answer, other)]


def _joined(op: Instruction, answer: bool, other: int) -> bool:
    if "AND" in op.parts:
        return answer and bool(other)
    if "OR" in op.parts:
        return answer or bool(other)
    if "XOR" in op.parts:
        return answer != bool(other)
    raise KeyError(op.opcode)


def _predicate_table(op: Instruction, sources: list[int]) -> list[int]:
    a, b, c, first, second = sources
    row = (bool(a) << 2) | (bool(b) << 1) | bool(c)
    return [bool(first >> row & 1), bool(second >> row & 1)]


def _bit_table(op: Instruction, sources: list[int]) -> list[int]:
    a, b, c, table = sources[:4]
    out = 0
    for row in range(8):
        if table >> row & 1:
            out |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    out &= MASK
    # With a predicate in front, that one says whether a bit is set.
    return [out != 0, out] if op.operands[0].lstrip("U").startswith("P") else [out]


def _shift(op: Instruction, sources: list[int]) -> list[int]:
    """SHF of the pair (high, low); USHF alike."""
    low, count, high = sources
    sign = any(part in {"S32", "S64"} for part in op.parts)
    pair = (signed(high) if sign else high) << 32 | low
    if "L" in op.parts:
        if "HI" not in op.parts:
            return [low << count & MASK]
        return [(pair << count) >> 32 & MASK]
    return [(pair >> 32 + count if "HI" in op.parts else pair >> count) & MASK]


def _scaled_add(op: Instruction, sources: list[int]) -> list[int]:
    """LEA: (a << n) + b, and the carry."""
    a, b, count = sources
    total = (a << count & MASK) + b
    return [total & MASK, total >> 32 & 1]


def _minimum_maximum(op: Instruction, sources: list[int]) -> list[int]:
    a, b, smaller = sources
    if "U32" not in op.parts:
        a, b = signed(a), signed(b)
    return [(min(a, b) if smaller else max(a, b)) & MASK]


def _sum_minimum_maximum(op: Instruction, sources: list[int]) -> list[int]:
    a, b, other, smaller = sources
    return _minimum_maximum(op, [(a + b) & MASK, other, smaller])


def _copy(op: Instruction, sources: list[int]) -> list[int]:
    return [sources[0] & MASK]


#: Name -> (numbers of sources that are described, what it does). The results are in the order of
#: the written operands; more of them than operands are dropped.
_DESCRIBED: dict[str, tuple[range, Callable[[Instruction, list[int]], list[int]]]] = {
    "MOV": (range(1, 2), _copy),
    "UMOV": (range(1, 2), _copy),
    "R2UR": (range(1, 2), _copy),
    "IADD3": (range(3, 6), _add),
    "UIADD3": (range(3, 6), _add),
    "VIADD": (range(2, 3), _add),
    "IMAD": (range(3, 5), _multiply_add),
    "UIMAD": (range(3, 5), _multiply_add),
    "ISETP": (range(3, 5), _compare),
    "UISETP": (range(3, 5), _compare),
    "PLOP3": (range(5, 6), _predicate_table),
    "UPLOP3": (range(5, 6), _predicate_table),
    "LOP3": (range(4, 6), _bit_table),
    "ULOP3": (range(4, 6), _bit_table),
    "SHF": (range(3, 4), _shift),
    "USHF": (range(3, 4), _shift),
    "LEA": (range(3, 4), _scaled_add),
    "ULEA": (range(3, 4), _scaled_add),
    "SEL": (range(3, 4), lambda op, s: [s[0] & MASK if s[2] else s[1] & MASK]),
    "USEL": (range(3, 4), lambda op, s: [s[0] & MASK if s[2] else s[1] & MASK]),
    "IABS": (range(1, 2), lambda op, s: [abs(signed(s[0])) & MASK]),
    "IMNMX": (range(3, 4), _minimum_maximum),
    "VIMNMX": (range(3, 4), _minimum_maximum),
    "VIADDMNMX": (range(4, 5), _sum_minimum_maximum),
}


def results_of(op: Instruction, state: State, constants: Mapping[int, int]) -> list[Value]:
    """Work out what one instruction writes, in the order of `Instruction.results`."""
    if op.name in {"LDC", "ULDC"}:
        return _of_constant(op, constants)
    if op.name == "CS2R" and op.operands[1] == "SRZ":
        return [0] * len(op.results)
    if op.name == "HFMA2":
        return [_of_two_halves(op)]
    operands = list(op.operands[op.operands_written :])
    wide = op.name == "IMAD" and "WIDE" in op.parts
    if wide:
        high = re.sub(r"\d+", lambda number: str(int(number[0]) + 1), operands[2])
        operands = [*operands[:2], operands[2], high]
        if operands[2] == "RZ":
            operands[3] = "RZ"
    sources = [read(operand, state, constants) for operand in operands]
    unknown = [source for source in sources if isinstance(source, frozenset)]
    counts, does = _DESCRIBED.get(op.name, (range(0), _copy))
    if wide:
        counts, does = range(4, 5), _multiply_add_wide
    described = len(sources) in counts and not (op.name == "LEA" and "HI" in op.parts)
    if not described and not unknown:
        unknown = [frozenset({f"{op.opcode} at 0x{op.address:x}"})]
    if unknown:
        return [frozenset().union(*unknown)] * len(op.results)
    values = does(op, [int(source) for source in sources if not isinstance(source, frozenset)])
    if wide:
        return list(values)
    # Written operands that hold nothing, such as PT, have no place among the results.
    kept = [
        value
        for operand, value in zip(op.operands[: op.operands_written], values, strict=False)
        if operand not in {"RZ", "URZ", "PT", "UPT"}
    ]
    return [
        bool(value) if "P" in name else value for name, value in zip(op.results, kept, strict=True)
    ]


def _of_two_halves(op: Instruction) -> Value:
    """Read a constant that is written as 0 * 0 + two numbers of 16 bits, the high one first."""
    unknown = frozenset({f"{op.opcode} at 0x{op.address:x}"})
    if len(op.operands) != 5 or {each.lstrip("-") for each in op.operands[1:3]} != {"RZ"}:
        return unknown
    try:
        packed = [struct.pack(">e", float(half)) for half in op.operands[3:]]
    except ValueError:
        return unknown
    return int.from_bytes(b"".join(packed), "big")


def _of_constant(op: Instruction, constants: Mapping[int, int]) -> list[Value]:
    found = re.fullmatch(r"c\[0x0\]\[0x([0-9a-f]+)\]", op.operands[1])
    if found is None:
        return [frozenset({f"{op.text}"})] * len(op.results)
    offset = int(found[1], 16)
    return [
        constants.get(offset + 4 * word, frozenset({f"parameter word 0x{offset + 4 * word:x}"}))
        for word in range(len(op.results))
    ]
