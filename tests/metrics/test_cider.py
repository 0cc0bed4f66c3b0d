import json
import math
import os
import pickle
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from fiber.inert_pickle import read_pickle
from fiber.metrics.cider import (
    DocumentFrequencies,
    cider_d_scores,
    ngrams,
    reward_text,
)
from tests.golden import COARSE

RECORDED = COARSE / "extras.json"


def test_no_image_has_no_score():
    assert cider_d_scores([], []).shape == (0,)
    assert cider_d_scores([], []).shape == (0,)


def test_ngrams():
    counts = ngrams("a b a b")
    assert counts[("a", "b")] == 2 and counts[("b", "a")] == 1 and counts[("a",)] == 2
    assert len(counts) == 2 + 2 + 2 + 1
    assert not ngrams("") and not ngrams("  ")


def test_the_only_reference_scores_ten_and_no_common_word_nothing():
    references = [["a b c d e"], ["f g h i j"], ["k l m n o"]]
    assert cider_d_scores([r[0] for r in references], references) == pytest.approx([10.0] * 3)
    assert cider_d_scores(["x y z", "", "f"], references)[:2].tolist() == [0.0, 0.0]


def test_one_word_of_two_by_hand():
    # Two images; every word occurs in one of them, so each n-gram weighs log 2.
    references = [["a b"], ["c d"]]
    # "a": 1-grams (a) against (a, b): 1 / sqrt(2); no longer n-gram; one 2-gram too few.
    expected = 10 * (1 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
    assert cider_d_scores(["a", "c d"], references)[0] == pytest.approx(expected)
    # Two of four n are there: 1-grams and 2-grams agree fully.
    assert cider_d_scores(["a b", "c d"], references).tolist() == pytest.approx([5.0, 5.0])


def test_repeating_a_word_is_clipped_and_longer_by_hand():
    references = [["a b"], ["c d"]]
    # "a a a": count 3 clipped to 1: 1 / (3 * sqrt(2)); its 2-gram "a a" is in no reference.
    expected = 10 * (1 / (3 * math.sqrt(2))) / 4 * math.exp(-1 / 72)
    assert cider_d_scores(["a a a", "c d"], references)[0] == pytest.approx(expected)


def test_a_word_of_every_image_weighs_nothing():
    references = [["a b"], ["a c"]]
    scores = cider_d_scores(["a", "a c"], references)
    assert scores[0] == 0.0 and scores[1] == pytest.approx(5.0)


def test_several_references_are_averaged():
    references = [["a b", "x y"], ["c d"]]
    assert cider_d_scores(["a b", "c d"], references)[0] == pytest.approx(2.5)


def test_frequencies_of_a_corpus_or_as_given():
    corpus = DocumentFrequencies.of([["a b", "a c"], ["a"], ["d"]])
    assert corpus.images == 3
    # Those of one image need no place: a missing one counts as 1.
    assert corpus.counts == {("a",): 2}
    assert corpus.weight(("a", "b")) == pytest.approx(math.log(3))
    assert corpus.weight(("a",)) == pytest.approx(math.log(3 / 2))
    # What the corpus never saw counts as if one image had it.
    assert corpus.weight(("never",)) == pytest.approx(math.log(3))
    given = DocumentFrequencies({("a",): 2.0, ("b",): 1.0}, 4.0)
    # 1-grams: (log 2, log 4) on both sides; 2-gram (a, b) unseen, weight log 4.
    assert cider_d_scores(["a b"], [["a b"]], given).tolist() == pytest.approx([5.0])
    with_itself = cider_d_scores(["a b"], [["a b"]])
    # In a corpus of one image every n-gram is everywhere.
    assert with_itself.tolist() == [0.0]


def test_no_image_has_no_frequencies():
    with pytest.raises(ValueError, match=r"document frequencies need captions.*none"):
        DocumentFrequencies.of([])


def written(path: Path, held: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(held, protocol=protocol))
    return path


KINDS = {
    "dict": dict,
    "of floats": lambda d: defaultdict(float, d),
    "of integers": lambda d: defaultdict(int, d),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("protocol", range(6))
def test_frequencies_of_a_file(tmp_path, kind, protocol):
    counts = kind({("a",): 3.0, ("a", "b"): 2, ("rare",): 1.0})
    path = written(tmp_path / "words.p", {"document_frequency": counts, "ref_len": 9}, protocol)
    found = DocumentFrequencies.read(path)
    assert found == ({("a",): 3.0, ("a", "b"): 2.0}, 9.0)
    assert found.weight(("rare",)) == found.weight(("never",)) == pytest.approx(math.log(9))


def test_frequencies_are_those_that_pickle_reads(tmp_path):
    """Of many n-grams that share words, with all lengths of strings and of memo indices."""
    words = ["é", "\u4e2d", "\U0001f436", "a'b", "x" * 300, *map(str, range(400))]
    counts = {
        tuple(words[(start * step) % len(words)] for step in range(1, length + 1)): count
        for start in range(400)
        for length, count in ((1, 2), (2, 3.5), (3, 70_000), (4, 2**33))
    }
    held = {"document_frequency": counts, "ref_len": 2**40, "other": (None, True, -5, 2**70)}
    for protocol in range(6):
        path = written(tmp_path / "words.p", held, protocol)
        with path.open("rb") as file:
            assert read_pickle(file, max_words=4).content == held
        found = DocumentFrequencies.read(path)
        assert found == (counts, 2.0**40)
        assert {type(count) for count in found.counts.values()} == {float}


def test_frequencies_of_a_file_of_python_2(tmp_path):
    """As its cPickle wrote them: byte strings, and `float` of the module __builtin__."""
    pickled = (
        b"(dS'document_frequency'\nccollections\ndefaultdict\n(c__builtin__\nfloat\ntR"
        b"(S'caf\\xc3\\xa9'\ntF2.0\nssS'ref_len'\nI5\ns."
    )
    (tmp_path / "old.p").write_bytes(pickled)
    assert DocumentFrequencies.read(tmp_path / "old.p") == ({("caf\u00e9",): 2.0}, 5.0)


class Hostile:
    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


def test_a_file_that_runs_code_does_not(tmp_path):
    mark = tmp_path / "mark"
    for number, call in enumerate([(os.mkdir, str(mark)), (eval, "1"), (Counter, "a")]):
        frequencies = {"document_frequency": {("a",): 1.0}, "ref_len": Hostile(*call)}
        path = written(tmp_path / f"{number}.p", frequencies)
        # What is harmless is not called, either.
        problem = {"mkdir": r"run code .*mkdir", "eval": r"run code .*eval"}
        with pytest.raises(ValueError, match=problem.get(call[0].__name__, "ref_len is <Inert>")):
            DocumentFrequencies.read(path)
    assert not mark.exists()
    # Attributes of what may be named cannot be set: the operation BUILD on `float`.
    build = b"c__builtin__\nfloat\n(dS'fromhex'\nI1\nsb."
    (tmp_path / "build.p").write_bytes(build)
    with pytest.raises(ValueError, match=r"build\.p contains an object of type Inert"):
        DocumentFrequencies.read(tmp_path / "build.p")
    assert float.fromhex("1") == 1.0


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([1], r"document_frequency.*ref_len"),
        ({"ref_len": 4}, r"the keys ref_len; .*'document_frequency'"),
        ({"document_frequency": {}, "ref_len": 4}, r"document_frequency is \{\}"),
        ({"document_frequency": {"a": 1}, "ref_len": 4}, r"maps 'a' to 1.*words"),
        ({"document_frequency": {(7,): 1}, "ref_len": 4}, r"maps <Inert> to 1; expected a tuple"),
        ({"document_frequency": {("a",): "1"}, "ref_len": 4}, r"maps \('a',\) to '1'; expected"),
        # The logarithm, as some scorers keep it.
        (
            {"document_frequency": {("a",): 9}, "ref_len": 2.7},
            r"ref_len.*2.7",
        ),
    ],
)
def test_a_file_of_something_else(tmp_path, held, message):
    with pytest.raises(ValueError, match=message):
        DocumentFrequencies.read(written(tmp_path / "words.p", held))


def text(value):
    """The opcode that pushes a string."""
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


#: A tuple with 2 ** 60 leaves, in the memo as 60: each one has the one before twice.
NESTED = text("a") + b"q\0" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60))
WORD = b"(d" + text("document_frequency") + b"}"
LIMITED = {
    "a key of many leaves": NESTED + b"}h\x3cK\1s.",
    "a call with many leaves": NESTED + b"ccollections\ndefaultdict\nh\x3cR.",
    "many leaves": NESTED + b"h\x3c.",
    "a large memo": b"K\1r\xff\xff\xff\xff.",
    "a large memo of text": b"I1\np999999999999\n.",
    "a memo below 0": b"I1\np-1\n.",
    "a value below 0 in the memo": b"I1\np0\ng-1\n.",
    "nothing in the memo": b"K\1q\5h\3.",
    "a long key": WORD + b"(" + b"(" + text("a") + b"q\0" + b"h\0" * 9999 + b"tK\1us.",
    "many dicts": b"}" * 1000 + b".",
    "tuples in tuples": b")" + b"\x85" * 1000 + b".",
    "a long name": b"c" + b"a" * 10**6 + b"\nb\n.",
    "a long number": b"F" + b"7" * 10**6 + b"x\n.",
    "a long integer": b"I" + b"7" * 10**6 + b"\n.",
    "a long string": b"S" + b"a" * 10**6 + b"\n.",
    "a string beyond the end": b"X\xff\xff\xff\xffa.",
    "an integer beyond the end": b"\x8b\xff\xff\xff\x7fa.",
    "not a dict": b"K\1(" + text("a") + b"K\1u.",
    "not a dict, one item": b"K\1" + text("a") + b"K\1s.",
    "a key without a value": b"}(" + text("a") + b"u.",
    "a list": b"].",
    "a text longer than any file": b"\x8d" + (2**60).to_bytes(8, "little") + b"a.",
    "an array longer than any file": b"\x96" + (2**60).to_bytes(8, "little") + b"a.",
    "an attribute": b"}}b.",
    "bytes": b"C\1a.",
    "no mark": b"}u.",
    "no value": b".",
    "no end": b"K\1",
    "no opcode": b"\xff.",
    "nothing": b"",
}


@pytest.mark.parametrize("pickled", LIMITED.values(), ids=LIMITED)
def test_hostile_pickles_are_refused_at_once(tmp_path, pickled):
    (tmp_path / "words.p").write_bytes(pickled)
    with pytest.raises(ValueError, match=r"words\.p ") as error:
        DocumentFrequencies.read(tmp_path / "words.p")
    assert len(str(error.value)) < 1000 + len(str(tmp_path))


def test_a_long_tuple_is_no_key(tmp_path):
    """Each use of a key hashes all of its words."""
    for words, named in ((16, "to 'x'"), (17, "<Inert>")):
        key = b"(" + text("a") * words + b"t"
        pickled = b"}(" + text("ref_len") + b"K\1" + text("document_frequency")
        (tmp_path / "words.p").write_bytes(pickled + b"}" + key + text("x") + b"su.")
        with pytest.raises(ValueError, match=rf"words\.p: document_frequency maps .*{named}"):
            DocumentFrequencies.read(tmp_path / "words.p")


@pytest.mark.parametrize("count", [10**400, math.inf, math.nan, -1, True, None, "1", (1,), {}])
def test_counts_that_are_none(tmp_path, count):
    for held in (
        {"document_frequency": {("a",): count}, "ref_len": 9},
        {"document_frequency": {("a",): 1}, "ref_len": count},
    ):
        with pytest.raises(ValueError, match=r"words\.p.*expected"):
            DocumentFrequencies.read(written(tmp_path / "words.p", held))


def test_no_file_of_frequencies(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"words\.p.*exist"):
        DocumentFrequencies.read(tmp_path / "words.p")
    (tmp_path / "cut.p").write_bytes(pickle.dumps({"ref_len": 4})[:-3])
    with pytest.raises(ValueError, match=r"cut\.p is not a pickle"):
        DocumentFrequencies.read(tmp_path / "cut.p")


def test_mean():
    references = [["a b c d"], ["e f g h"]]
    assert cider_d_scores(["a b c d", "nothing"], references).mean() == pytest.approx(5.0)


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="got 1 captions and references for 2 images"):
        cider_d_scores(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="image 1 has no reference"):
        cider_d_scores(["a", "b"], [["a"], []])


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("", " <eos>"),
        (" a dog. ", "a dog <eos>"),
        ("a dog..", "a dog. <eos>"),
        ("U.S", "U.S <eos>"),
    ],
)
def test_reward_text(caption, expected):
    assert reward_text(caption) == expected


def test_scores_equal_the_original():
    recorded = json.loads(RECORDED.read_text())["ciderD"]
    counts = {tuple(gram.split()): count for gram, count in recorded["df"].items()}
    frequencies = DocumentFrequencies(counts, recorded["ref_len"])
    captions = [recorded["res"][key] for key in recorded["gts"]]
    scores = cider_d_scores(captions, list(recorded["gts"].values()), frequencies)
    # Both in double precision.
    assert np.allclose(scores, recorded["scores"], rtol=1e-12)
