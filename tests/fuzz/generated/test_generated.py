"""Readers refuse what the generator makes, or read it, within limits; and the generator itself."""

import io
import json
import pickle
import random
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from fiber.inert_pickle import read_pickle
from tests.fuzz.forked import Ended, limit, run_forked
from tests.fuzz.generated import cases, found, runs, trees
from tests.fuzz.generated.cases import Case, documents
from tests.fuzz.generated.encodings import from_pickle, to_json, to_pickle
from tests.fuzz.generated.trees import Built, Call, Global, Pairs, Raw, tree_of
from tests.fuzz.generated.values import ALL, GROWING, SHARED, probing_integers
from tests.fuzz.generated.verdict import ALLOWED, verdict
from tests.fuzz.structured import Steered

KINDS = sorted({document.kind for document in documents()})
#: Small cases of each document that are read here, besides those in `found`.
CASES = 16
#: Limits of a case.
MAX_SECONDS, MAX_BYTES = 4, 500_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_values_are_refused_or_read(kind, tmp_path):
    problems = []
    for number, document in enumerate(each for each in documents() if each.kind == kind):
        folder = tmp_path / str(number)
        folder.mkdir()
        document.prepare(folder)
        found_before = found.SMALL.get(document.name, ())
        chosen = cases.sample(cases.small_cases(document), CASES, found_before)
        outcomes = run_forked(chosen, lambda case, folder=folder: read(case, folder))
        for case, outcome in zip(chosen, outcomes, strict=True):
            outcome = outcome.reason if isinstance(outcome, Ended) else outcome
            if outcome not in ALLOWED:
                problems.append(f"{document.name}: {case.name}: {outcome}")
    assert not problems, "\n".join(problems)


def read(case: Case, folder: Path) -> str:
    warnings.simplefilter("ignore")
    case.write(folder, 1)
    limit(MAX_SECONDS, MAX_BYTES)
    return verdict(case.document.read, folder)


def test_found_cases_are_of_documents():
    names = {document.name for document in documents()}
    assert {*found.SMALL, *found.GROWING} <= names


def test_an_error_must_name_the_file_in_a_short_printable_message(tmp_path):
    def read(message, kind=ValueError):
        def fail(path):
            raise kind(message)

        return verdict(fail, tmp_path)

    assert verdict(lambda path: None, tmp_path) == "read"
    assert read(f"{tmp_path}: no") == "ValueError"
    assert read(f"{tmp_path}: no\n  second line") == "ValueError"
    assert read(f"{tmp_path}: no", FileNotFoundError) == "OSError"
    assert read("no") == "a message without the file"
    assert read(f"{tmp_path} {'a' * 20_000}").startswith("a message of 20,")
    assert read(f"{tmp_path} \x1b[2J") == "a message with control characters"
    assert read(f"{tmp_path} \ud800") == "a message with control characters"
    assert read(f"{tmp_path}: no", TypeError) == "TypeError"


def test_a_change_of_a_class_that_an_index_may_name_is_seen(monkeypatch):
    runs.check_attributes()
    for kind, name in (
        (runs.metadata.Metadata, "relative_path"),
        (type(Path()), "exists"),
        (runs.metadata.MetadataIndex, "__eq__"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(kind, name, torch.Size, raising=False)
            with pytest.raises(AssertionError, match=kind.__name__):
                runs.check_attributes()
    runs.check_attributes()


PLAIN = [
    None,
    True,
    3,
    -1,
    2**70,
    0.5,
    "text ä",
    b"bytes",
    [],
    {},
    (),
    {"a": [1, {"b": (2, "c")}], "d": {1: None}},
]


@pytest.mark.parametrize("value", PLAIN)
def test_trees_of_plain_values_are_encoded_as_pickle_and_json(value):
    assert pickle.loads(to_pickle(tree_of(value))) == value
    for protocol in range(3 if isinstance(value, bytes) else 2, 6):
        assert from_pickle(pickle.dumps(value, protocol)) == tree_of(value)
    if value not in (b"bytes", (), PLAIN[-1]):
        assert json.loads(to_json(tree_of(value))) == value


def test_what_torch_saves_is_the_same_after_a_way_through_a_tree():
    file = io.BytesIO()
    torch.save(
        {"state_dict": {"a": torch.ones(2, 3), "b": torch.nn.Parameter(torch.ones(2))}}, file
    )
    saved = zipfile.ZipFile(file).read("archive/data.pkl")
    again = to_pickle(from_pickle(saved))
    assert again != saved
    assert str(read_pickle(io.BytesIO(again))) == str(read_pickle(io.BytesIO(saved)))


def test_shared_values_are_stored_once():
    text = "x" * 1000
    shared = trees.Raw(b"X\xe8\x03\0\0" + text.encode(), json.dumps(text))
    data = to_pickle([shared, shared, [shared]])
    assert len(data) < 1100
    assert pickle.loads(data) == [text, text, [text]]
    again = to_pickle([Call(Global("builtins", "list"), ()), (1, 2)] * 2)
    assert again.count(b"builtins") == 1


def test_changes_of_a_tree():
    tree = tree_of({"a": [1, 2], "b": (3, {"c": 4})})
    assert trees.put(tree, ((0, 1), 1), "x") == tree_of({"a": [1, "x"], "b": (3, {"c": 4})})
    assert trees.put(tree, ((1, 0),), "x") == tree_of({"a": [1, 2], "x": (3, {"c": 4})})
    assert trees.at(tree, ((1, 1), 1, (0, 1))) == 4
    many = trees.repeated(tree, ((0, 1), 0), 9, 3)
    assert many == tree_of({"a": [9, 9, 9, 2], "b": (3, {"c": 4})})
    pairs = trees.repeated(tree, ((1, 1), 1, (0, 0)), "x", 2)
    assert trees.at(pairs, ((1, 1), 1)) == Pairs([("x", 4), ("x", 4)])
    # The tree itself is as it was.
    assert tree == tree_of({"a": [1, 2], "b": (3, {"c": 4})})
    filled = trees.filled(tree, ((0, 1), 0), [7, 8])
    assert filled == tree_of({"a": [7, 8, 2], "b": (3, {"c": 4})})
    # Items of dicts are none of a list.
    rows = tree_of([{"id": 0, "at": (1, 2)}])
    assert trees.filled(rows, (0, (0, 1)), [7, 8]) == [
        Pairs([("id", number), ("at", (1, 2))]) for number in (7, 8)
    ]
    assert trees.filled(tree, ((1, 1), 0), [7, 8]) == tree
    assert trees.is_in_list(rows, (0, (1, 1), 0)) and not trees.is_in_list(tree, ((1, 1), 0))
    for changed_before in ([], ["a"], "a"):
        with pytest.raises(TypeError, match="has no place"):
            trees.repeated([changed_before, 1], (0, (0, 1)), 7, 2)
    with pytest.raises(TypeError, match="has no place"):
        trees.repeated(Pairs([("a", 1)]), (0,), 7, 2)
    popped = trees.dropped([[1, 2]], (0, 1), 7, 3)
    assert pickle.loads(to_pickle(popped)) == [[1, 2]]
    assert to_pickle(popped).count(b"0") == 3


def test_places_are_all_fields_but_of_alike_items_the_first_ones():
    assert list(trees.places(tree_of({"a": [1]}))) == [
        (),
        ((0, 0),),
        ((0, 1),),
        ((0, 1), 0),
    ]
    many = list(trees.places([[number] for number in range(100)]))
    assert many == [(), (0,), (0, 0), (1,), (1, 0)]
    config = tree_of({f"field{number}": [number] for number in range(24)})
    assert {((number, 1), 0) for number in range(24)} < set(trees.places(config))
    assert list(trees.places(Built(Raw(b"N", "null"), 3))) == [(), ("target",), ("state",)]


@pytest.mark.parametrize("value", ALL, ids=lambda value: value.name)
def test_encodings_of_hostile_values_are_linear_in_their_size(value):
    sizes = [len(to_pickle(value.make(size))) for size in (1, 100, 200)]
    assert sizes[2] <= 2.1 * sizes[1] <= 220 * max(sizes[0], 300)
    if value in GROWING and value.name != "sparse memo":
        assert sizes[2] > 1.9 * sizes[1] or value.name.startswith("deep")


def test_shared_values_have_exponentially_many_leaves():
    for value in SHARED:
        data = to_pickle(value.make(1))
        assert len(data) < 300
        leaves, level = 1, pickle.loads(data)
        while level is not None:
            first, second = level
            assert first is second
            leaves, level = 2 * leaves, first
        assert leaves == 2**60


def test_integers_that_probe_are_distinct_and_have_their_own_hashes():
    for count in (1, 100, 5000):
        found = probing_integers(count)
        assert len(set(found)) == len(found) == count
        assert all(0 < hash(each) == each for each in found)


def test_integers_are_put_into_lists_of_json(tmp_path):
    """Each is in an entry of its own, of which there are twice as many at twice the size."""
    document = next(each for each in documents() if each.name == "id maps")
    document.prepare(tmp_path)
    names = []
    for case in cases.probing_cases(document):
        names.append(case.name)
        sizes = []
        for size in (3, 6):
            case.write(tmp_path, size)
            sizes.append((tmp_path / "panoptic_train.json").stat().st_size)
        assert sizes[1] > 1.1 * sizes[0]
    assert "annotations.0.segments_info.0.id = integers that probe" in names


def test_random_cases_are_reproducible_and_zeros_draw_the_sound_document():
    for document in documents()[::9]:
        drawn = [cases.random_case(random.Random(number), document).name for number in range(40)]
        again = [cases.random_case(random.Random(number), document).name for number in range(40)]
        assert drawn == again
        assert len(set(drawn)) > 10
        assert cases.random_case(Steered(b""), document).name == "sound"


def test_a_steered_generator_takes_its_choices_from_bytes():
    draw = Steered(bytes([3, 1, 200, 2]))
    # The lower four bits of 200 are 8, which is no index, so that the next byte is taken.
    assert [draw.choice("abcdefgh") for _ in range(4)] == ["d", "b", "c", "a"]
    assert Steered(b"ab").randbytes(3) == b"ab\0"


def test_a_job_that_ends_its_process_is_a_result():
    def run(number):
        if number == 1:
            limit(1, 1 << 30)
            while True:
                pass
        if number == 2:
            raise SystemExit(3)
        return number

    results = list(run_forked(range(4), run))
    assert results[0] == 0 and results[3] == 3
    assert results[1].reason == "SIGPROF"
    assert results[2].reason == "exit"


def test_random_cases_are_linear_in_their_size(tmp_path):
    """But for a constant; of documents that are quick to write."""
    for document in documents()[::11]:
        folder = tmp_path / document.kind / document.name
        folder.mkdir(parents=True)
        document.prepare(folder)
        for number in range(30):
            case = cases.random_case(random.Random(number), document)
            sizes = []
            for size in (20, 40, 80):
                case.write(folder, size)
                sizes.append(sum(file.stat().st_size for file in folder.iterdir()))
            first, second = sizes[1] - sizes[0], sizes[2] - sizes[1]
            # Tar archives grow by records of 10,240 bytes.
            assert second <= 2.2 * max(first, 5000), case.name
