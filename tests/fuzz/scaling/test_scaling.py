"""Work of readers grows linearly with what they read: counted, not timed."""

import sys

import pytest

from tests.fuzz.generated import cases, found
from tests.fuzz.generated.cases import Case, documents
from tests.fuzz.generated.documents import Document
from tests.fuzz.generated.values import GROWING, SHARED, string
from tests.fuzz.scaling import growth
from tests.fuzz.scaling.counters import Work, work_of

KINDS = sorted({document.kind for document in documents()})
#: Growing cases of each document that are read here, besides those in `found`: fewer where a
#: network is built.
CASES, FEWER_CASES = 4, {"stored_configs": 1, "configs": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_work_grows_linearly(kind, tmp_path):
    problems, count = [], FEWER_CASES.get(kind, CASES)
    for number, document in enumerate(each for each in documents() if each.kind == kind):
        folder = tmp_path / str(number)
        folder.mkdir()
        found_before = found.GROWING.get(document.name, ())
        chosen = cases.sample(cases.growing_cases(document), count, found_before)
        for case, problem in growth.check(chosen, folder):
            problems.append(f"{document.name}: {case.name}: {problem}")
    assert not problems, "\n".join(problems)


def test_bytes_of_copies_are_counted():
    text = "x" * 100_000
    none, one, ten = (work_of(lambda n=n: [text + "y" for _ in range(n)]) for n in (0, 1, 10))
    assert 100_000 <= one.allocated_bytes - none.allocated_bytes < 300_000
    assert 9 * 100_000 <= ten.allocated_bytes - one.allocated_bytes < 9 * 300_000


def test_opcodes_of_loops_and_calls_of_functions_in_c_are_counted():
    def count(times):
        total = 0
        for number in range(times):
            total += number

    # See `growth._measure`.
    work_of(lambda: count(10))
    few, many = work_of(lambda: count(10)), work_of(lambda: count(1010))
    assert 3000 <= many.opcodes - few.opcodes < 20_000
    assert many.calls == few.calls
    few, many = (work_of(lambda n=n: [len("") for _ in range(n)]) for n in (10, 1010))
    assert many.calls - few.calls == 1000


def test_counters_are_taken_out_again():
    def nothing():
        pass

    first = [work_of(nothing) for _ in range(2)][1]
    assert first.opcodes < 20 and first.calls < 5 and first.allocated_bytes < 3000
    with pytest.raises(KeyError):
        work_of(lambda: {}["missing"])
    assert sys.gettrace() is None and sys.getprofile() is None
    assert work_of(nothing) == first


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ([1, 1, 1], ""),
        # Of 100 units a step, with a constant, and n log n.
        ([100, 200, 400], ""),
        ([9100, 9200, 9400], ""),
        ([600, 1330, 2916], ""),
        ([100, 400, 1600], "opcodes"),
        ([9100, 9400, 10600], "opcodes"),
        # A small quadratic part.
        ([110, 240, 560], ""),
        ([160, 440, 1360], "opcodes"),
    ],
)
def test_more_than_linear_growth_is_named(work, expected):
    found = growth.excess([Work(0, 1000 * opcodes, 0) for opcodes in work])
    assert found.partition(" ")[0] == expected


def test_growth_that_is_small_in_all_is_no_finding():
    assert not growth.excess([Work(0, opcodes, 0) for opcodes in (10, 20, 5000)])


def _reader(read):
    """A case whose content is read by a function of its text and its size."""
    document = Document(
        "toys",
        "toy",
        lambda size: size,
        lambda size, folder: (folder / "size").write_text(str(size)),
        lambda folder: read(int((folder / "size").read_text())),
    )
    return Case(document, "toy", lambda size: size)


def _copies(size):
    name = "A" * (256 * size)
    for number in range(size):
        f"{number}.{name}"


def _pairs(size):
    return sum(1 for _ in range(size) for _ in range(size))


def _hash_of_shared(size):
    level = (1,)
    for _ in range(60):
        level = (level, level)
    hash(level)


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda size: [str(number) for number in range(100 * size)], ""),
        (lambda size: sorted(str(number) for number in range(100 * size)), ""),
        (lambda size: {number: [number] for number in range(100 * size)}, ""),
        (_copies, "allocated_bytes"),
        (lambda size: repr([0] * 9 * size * size)[:60], "allocated_bytes"),
        (_pairs, "opcodes"),
        (_hash_of_shared, "ended by SIGPROF"),
    ],
)
def test_each_class_of_growth_is_seen(read, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "MAX_SECONDS", 2)
    problems = [problem for _, problem in growth.check([_reader(read)], tmp_path)]
    assert len(problems) == bool(expected)
    assert all(expected in problem for problem in problems)


def test_values_that_grow_are_strings_and_containers_and_shared_ones_are_small():
    assert {value.name.partition(" ")[2] for value in GROWING} >= {"string", "list", "keys"}
    assert len(string("a").opcodes) == 6
    assert all(len(value.make(1).opcodes) < 300 for value in SHARED)
