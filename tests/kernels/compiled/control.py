"""How often a kernel runs each of its instructions, found by running what steers its loops.

Trip counts are not guessed from the shape of the code: the instructions that branches depend on
are carried out with the launch's own arguments, for every program of the grid where programs
differ. Loops that a compiler unrolled, peeled or split are thereby counted as they are.

What is not known counts as executed: a forward branch that hangs on data or on the thread falls
through, so that what it would skip is counted (code that it would reach elsewhere, such as the slow
path of a rare value, is not); instructions under a false predicate take their issue slot too. A
loop that hangs on an unknown value is an error, not a guess.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.kernels.compiled.sass import Instruction, Program
from tests.kernels.compiled.semantics import State, Value, read, results_of

AXES = ("CTAID.X", "CTAID.Y", "CTAID.Z")
#: Programs of a grid that are run one by one, at most.
MOST_PROGRAMS = 20_000
#: Instructions that one program may take, so that a loop that does not end is an error.
MOST_STEPS = 2_000_000


@dataclass
class Executions:
    """How often instructions run in all programs of a launch, counted for one warp of each."""

    #: By index into `Program.instructions`.
    counts: Counter[int] = field(default_factory=Counter)
    #: Of those, accesses to memory whose predicate is known to be false: they move nothing.
    idle: Counter[int] = field(default_factory=Counter)

    def total(self) -> int:
        """Instructions of one warp of every program."""
        return self.counts.total()


class UnknownLoopError(RuntimeError):
    """A loop whose end depends on what is not known."""


class _NeedsAxesError(Exception):
    def __init__(self, axes: frozenset[str]) -> None:
        super().__init__(axes)
        self.axes = axes


def execute(
    program: Program,
    grid: tuple[int, ...],
    constants: Mapping[int, int],
    loaded: int | None = None,
) -> Executions:
    """Run a launch.

    Args:
        program: the kernel.
        grid: programs along each axis.
        constants: 32-bit words of the first constant bank by their offset: the arguments.
        loaded: what every value is that is loaded from memory and steers a branch, such as the
            length of all keys; None: unknown.

    Raises:
        UnknownLoopError: if a loop's end hangs on an unknown value.
        RuntimeError: for a branch that is not known here, or a program without an end.
    """
    sizes = dict(zip(AXES, (*grid, 1, 1), strict=False))
    runner = _Runner(program, constants, loaded)
    axes: frozenset[str] = frozenset()
    while True:
        try:
            return _all_programs(runner, axes, sizes)
        except _NeedsAxesError as needed:
            axes |= needed.axes


def _all_programs(runner: _Runner, axes: frozenset[str], sizes: dict[str, int]) -> Executions:
    """Run one program for each value of the axes that matter; each stands for its likes."""
    chosen = sorted(axes)
    programs = 1
    for axis in chosen:
        programs *= sizes[axis]
    if programs > MOST_PROGRAMS:
        raise RuntimeError(f"{programs} programs differ along {chosen}; expected {MOST_PROGRAMS}")
    alike = 1
    for axis in AXES:
        alike *= 1 if axis in axes else sizes[axis]
    executions = Executions()
    for place in itertools.product(*(range(sizes[axis]) for axis in chosen)):
        visits, idle = runner.run(dict(zip(chosen, place, strict=True)))
        for start, count in visits.items():
            for index in runner.blocks[start]:
                executions.counts[index] += count * alike
        for index, count in idle.items():
            executions.idle[index] += count * alike
    return executions


class _Runner:
    def __init__(self, program: Program, constants: Mapping[int, int], loaded: int | None) -> None:
        self.program, self.constants, self.loaded = program, constants, loaded
        self.blocks = _blocks(program)
        #: Instructions of each block that branches depend on, branches apart.
        self.steps = _steering(program, self.blocks)
        self.index = {op.address: index for index, op in enumerate(program.instructions)}

    def run(self, axes: dict[str, int]) -> tuple[Counter[int], Counter[int]]:
        """Count how often each block runs, by its start, and what is idle, by its index."""
        state: State = {}
        visits: Counter[int] = Counter()
        idle: Counter[int] = Counter()
        returns: list[int] = []
        start: int | None = 0
        steps = 0
        while start is not None:
            visits[start] += 1
            steps += len(self.steps[start]) + 1
            if steps > MOST_STEPS:
                raise RuntimeError(f"more than {MOST_STEPS} steps; expected an end")
            for op in self.steps[start]:
                if self._step(op, state, axes) is False and op.name in MEMORY:
                    idle[self.index[op.address]] += 1
            start = self._next(self.blocks[start], state, returns)
        return visits, idle

    def _step(self, op: Instruction, state: State, axes: dict[str, int]) -> Value:
        """Carry an instruction out; whether it ran."""
        guard = self._guard(op, state)
        if guard is False or not op.results:
            return guard
        values = self._values(op, state, axes)
        if isinstance(guard, frozenset):
            values = [
                guard | (value if isinstance(value, frozenset) else frozenset()) for value in values
            ]
        state.update(zip(op.results, values, strict=True))
        return guard

    def _values(self, op: Instruction, state: State, axes: dict[str, int]) -> list[Value]:
        if op.name in {"S2R", "S2UR"}:
            name = op.operands[1].removeprefix("SR_")
            return [axes.get(name, frozenset({name}))]
        if op.name == "LDG":
            known = self.loaded is not None and len(op.results) == 1
            value = self.loaded if known else frozenset({f"load at 0x{op.address:x}"})
            assert value is not None
            return [value] * len(op.results)
        return results_of(op, state, self.constants)

    def _guard(self, op: Instruction, state: State) -> Value:
        """Whether an instruction runs: of its own predicate, and of those a branch names."""
        conditions: list[Value] = []
        if op.guard is not None:
            predicate, value = op.guard
            conditions.append(read(predicate if value else f"!{predicate}", state, {}))
        if op.name == "BRA":
            conditions += [
                read(operand, state, {})
                for operand in op.operands
                if operand.lstrip("!").startswith(("P", "UP"))
            ]
        if any(condition is False for condition in conditions):
            return False
        unknown = [each for each in conditions if isinstance(each, frozenset)]
        return frozenset().union(*unknown) if unknown else True

    def _next(self, block: range, state: State, returns: list[int]) -> int | None:
        """Find the block that follows; None at the end."""
        last = block[-1]
        op = self.program.instructions[last]
        if op.name not in _ENDS:
            return last + 1
        taken = self._guard(op, state)
        if op.name == "BRA" and "DIV" in op.parts:
            # Taken where the threads of a warp part ways.
            taken = False
        if isinstance(taken, frozenset):
            taken = self._when_unknown(op, last, taken)
        if not taken:
            return last + 1
        if op.name == "EXIT":
            return None
        if op.name == "RET":
            return returns.pop()
        if op.name == "CALL":
            returns.append(last + 1)
        if op.target is None or op.name not in {"BRA", "CALL"}:
            raise RuntimeError(f"a branch that is not known here: {op.text}")
        return self.program.labels[op.target]

    def _when_unknown(self, op: Instruction, index: int, reasons: frozenset[str]) -> bool:
        if reasons <= set(AXES):
            raise _NeedsAxesError(reasons)
        backward = op.target is not None and self.program.labels[op.target] <= index
        if backward:
            raise UnknownLoopError(f"{op.text} hangs on {', '.join(sorted(reasons))}")
        return False


#: Instructions that move data between global memory and the chip.
MEMORY = frozenset({"LDG", "LDGSTS", "STG", "REDG", "ATOMG"})

_ENDS = frozenset(["BRA", "BRX", "JMP", "JMX", "CALL", "RET", "EXIT", "KILL", "BPT"])


def _blocks(program: Program) -> dict[int, range]:
    """Cut a program where branches go to and come from: start -> indices."""
    count = len(program.instructions)
    starts = {0, *program.labels.values()}
    starts |= {index + 1 for index, op in enumerate(program.instructions) if op.name in _ENDS}
    ordered = sorted(start for start in starts if start < count)
    return {
        start: range(start, end) for start, end in zip(ordered, [*ordered[1:], count], strict=True)
    }


def _steering(program: Program, blocks: dict[int, range]) -> dict[int, list[Instruction]]:
    """Find the instructions of each block that branches depend on, here or later.

    Backwards through the program: what a branch reads, and the predicate of an access to memory,
    is needed before it, up to where it is written without a predicate.
    """
    followers = _followers(program, blocks)
    needed: dict[int, set[str]] = {start: set() for start in blocks}
    steps: dict[int, list[Instruction]] = {}
    changed = True
    while changed:
        changed = False
        for start, block in reversed(blocks.items()):
            wanted = set().union(*(needed[after] for after in followers[start]))
            chosen = []
            for index in reversed(block):
                op = program.instructions[index]
                if op.name in _ENDS:
                    wanted |= _reads(op)
                elif not wanted.isdisjoint(op.results):
                    chosen.append(op)
                    if op.guard is None:
                        wanted -= set(op.results)
                    wanted |= _reads(op)
                elif op.name in MEMORY and op.guard is not None:
                    chosen.append(op)
                    wanted.add(op.guard[0])
            steps[start] = chosen[::-1]
            if wanted != needed[start]:
                needed[start], changed = wanted, True
    return steps


def _followers(program: Program, blocks: dict[int, range]) -> dict[int, set[int]]:
    """Find the blocks that may run after each block; after a return all that follow a call."""
    after_calls = {index + 1 for index, op in enumerate(program.instructions) if op.name == "CALL"}
    followers = {}
    for start, block in blocks.items():
        op = program.instructions[block[-1]]
        after = {block[-1] + 1}
        if op.name in _ENDS and op.target is not None:
            after.add(program.labels[op.target])
        if op.name == "RET":
            after |= after_calls
        followers[start] = after & blocks.keys()
    return followers


def _reads(op: Instruction) -> set[str]:
    names = {op.guard[0]} if op.guard else set()
    for operand in op.operands[op.operands_written :]:
        bare = operand.lstrip("!-~|").rstrip("|")
        kind = bare.removeprefix("U")[:1]
        if kind in {"R", "P"} and bare.lstrip("UPR").isdigit():
            names.add(bare)
            if "WIDE" in op.parts and kind == "R":
                letters = bare.rstrip("0123456789")
                names.add(f"{letters}{int(bare.removeprefix(letters)) + 1}")
    return names - {"PT", "UPT"}
