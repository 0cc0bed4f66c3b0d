"""Tokenizers of every kind against Hugging Face's: ids, offsets, cuts, batches, positive maps."""

import json
import pickle
import random
from typing import NamedTuple

import numpy as np
import pytest

from fiber._core import Tokenizer

pytest.importorskip("tokenizers")

import tokenizers

from .tokenizer_kinds import KINDS, TEXTS, random_text

#: Padding, mask, unknown, what stands before and behind, and whether texts go through our own code.
ROLES = {
    "gpt2": (0, None, None, [], [], True),
    "gpt2-trim": (0, None, None, [], [], True),
    "gpt2-space": (0, None, None, [], [], True),
    "gpt2-space-trim": (0, None, None, [], [], True),
    "llama3": (1, None, None, [0], [], False),
    "clip": (1, None, 1, [0], [1], False),
    "bert": (0, 4, 1, [2], [3], False),
    "bert-template": (0, 4, 1, [2], [3], False),
    "t5": (0, None, 2, [], [1], False),
    "xlm-roberta": (1, -1, 3, [0], [2], False),
    "llama2": (2, None, 0, [1], [], False),
    "word-level": (0, None, 0, [], [], False),
    "twice": (0, 4, 1, [2], [], False),
}
#: Texts of each comparison.
TRIES = 400


class Pair(NamedTuple):
    name: str
    theirs: tokenizers.Tokenizer
    ours: Tokenizer
    specials: list[str]

    def texts(self, seed: int, count: int = TRIES) -> list[str]:
        """Draw texts, the empty one and a long one among them."""
        rng = random.Random(seed)
        drawn = [random_text(rng, self.specials) for _ in range(count)]
        return ["", " ", " ".join(TEXTS[:9]), *drawn]

    def cut(self, text: str, limit: int | None) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode with theirs."""
        if limit is not None:
            self.theirs.enable_truncation(limit)
        found = self.theirs.encode(text)
        self.theirs.no_truncation()
        return found.ids, found.offsets

    @property
    def least(self) -> int:
        """Tokens around a text."""
        return self.theirs.num_special_tokens_to_add(is_pair=False)


@pytest.fixture(scope="module", params=KINDS)
def pair(request) -> Pair:
    theirs = KINDS[request.param]()
    added = theirs.get_added_tokens_decoder().values()
    specials = [token.content for token in added if token.special]
    return Pair(request.param, theirs, Tokenizer.from_json(theirs.to_str()), specials)


def test_roles_are_found(pair):
    pad, mask, unknown, before, after, is_fast = ROLES[pair.name]
    ours = pair.ours
    mask = ours.vocab_size - 1 if mask == -1 else mask
    assert (ours.pad_id, ours.mask_id, ours.unknown_id) == (pad, mask, unknown)
    assert (ours.start_ids, ours.end_ids, ours.is_fast) == (before, after, is_fast)
    assert ours.vocab_size == len(ours) == pair.theirs.get_vocab_size()
    specials = {pair.theirs.token_to_id(token) for token in pair.specials}
    assert ours.special_ids == sorted(specials)


def test_ids_and_offsets(pair):
    for text in pair.texts(seed=0):
        assert pair.ours.encode(text) == pair.cut(text, None), ascii(text)


def test_cut_texts(pair):
    rng = random.Random(1)
    for text in pair.texts(seed=2):
        limit = max(1, rng.randint(pair.least, pair.least + 20))
        assert pair.ours.encode(text, max_tokens=limit) == pair.cut(text, limit), ascii(text)
    for limit in range(max(0, pair.least - 1), -1, -1):
        with pytest.raises(
            ValueError, match=f"max_tokens: {limit}; expected {max(1, pair.least)} or"
        ):
            pair.ours.encode("a", max_tokens=limit)


@pytest.mark.parametrize("limit", [None, 9])
def test_batches(pair, limit):
    theirs = tokenizers.Tokenizer.from_str(pair.theirs.to_str())
    if limit:
        theirs.enable_truncation(limit)
    theirs.enable_padding(pad_id=pair.ours.pad_id)
    texts = pair.texts(seed=3, count=60)
    expected = theirs.encode_batch(texts)
    batch = pair.ours.encode_batch(texts, max_tokens=limit, offsets=True)
    ids, mask, offsets = (np.asarray(batch[k]) for k in ("token_ids", "text_mask", "offsets"))
    assert (ids.dtype, mask.dtype, offsets.dtype) == (np.int64, np.bool_, np.int64)
    assert ids.tolist() == [row.ids for row in expected]
    assert mask.astype(int).tolist() == [row.attention_mask for row in expected]
    assert [[tuple(span) for span in row] for row in offsets.tolist()] == [
        row.offsets for row in expected
    ]


def test_positive_maps(pair):
    rng = random.Random(4)
    for text in pair.texts(seed=5, count=100):
        places = range(len(text) + 1)
        boxes = [
            [tuple(sorted(rng.sample(places, 2))) for _ in range(rng.randint(0, 2)) if text]
            for _ in range(3)
        ]
        for limit in (None, pair.least + 5):
            _, offsets = pair.cut(text, limit)
            expected = [
                [any(max(a, start) < min(b, end) for a, b in spans) for start, end in offsets]
                for spans in boxes
            ]
            found = pair.ours.positive_map(text, boxes, max_tokens=limit)
            assert np.asarray(found).tolist() == expected, ascii(text)


def test_files_and_pickles(pair, tmp_path):
    path = tmp_path / "tokenizer.json"
    pair.ours.save(path)
    texts = pair.texts(seed=6, count=40)
    expected = [pair.ours.encode(text) for text in texts]
    for again in (Tokenizer.from_file(path), pickle.loads(pickle.dumps(pair.ours))):
        assert [again.encode(text) for text in texts] == expected
        assert again.to_json() == pair.ours.to_json()
    theirs = tokenizers.Tokenizer.from_file(str(path))
    assert [theirs.encode(text).ids for text in texts] == [ids for ids, _ in expected]


@pytest.mark.parametrize("name", ["t5", "word-level", "gpt2"])
def test_tokens_that_are_named(name):
    theirs = KINDS[name]()
    pad, mask = {
        "t5": ("<unk>", "<extra_id_0>"),
        "word-level": ("[UNK]", "of"),
        "gpt2": ("a", "!"),
    }[name]
    ours = Tokenizer.from_json(theirs.to_str(), pad_token=pad, mask_token=mask)
    ids = theirs.token_to_id(pad), theirs.token_to_id(mask)
    assert (ours.pad_id, ours.mask_id) == ids and {*ids} <= {*ours.special_ids}
    texts = TEXTS[:5]
    for again in (Tokenizer.from_json(ours.to_json()), pickle.loads(pickle.dumps(ours))):
        assert (again.pad_id, again.mask_id, again.special_ids) == (*ids, ours.special_ids)
        assert again.to_json() == ours.to_json()
    saved = tokenizers.Tokenizer.from_str(ours.to_json())
    assert saved.padding is not None and saved.padding["pad_id"] == ids[0]
    assert [saved.encode(t).ids for t in texts] == [ours.encode(t)[0] for t in texts]
    with pytest.raises(ValueError, match="pad_token: 'xyzzy' is not in the vocabulary"):
        Tokenizer.from_json(theirs.to_str(), pad_token="xyzzy")
    with pytest.raises(ValueError, match="mask_token: 'xyzzy' is not in the vocabulary"):
        Tokenizer.from_json(theirs.to_str(), mask_token="xyzzy")
    with pytest.raises(ValueError, match="is also the padding token; expected two"):
        Tokenizer.from_json(theirs.to_str(), pad_token=mask, mask_token=mask)


def test_padding_and_truncation_of_the_file():
    theirs = KINDS["word-level"]()
    whole = theirs.encode(TEXTS[0]).ids
    theirs.enable_padding(pad_id=theirs.token_to_id("of"), pad_token="of", length=30)
    theirs.enable_truncation(3, direction="left")
    ours = Tokenizer.from_json(theirs.to_str())
    assert ours.pad_id == theirs.token_to_id("of")
    # Both are the caller's business.
    assert ours.encode(TEXTS[0])[0] == whole and ours.encode(TEXTS[0], max_tokens=3)[0] == whole[:3]
    assert Tokenizer.from_json(ours.to_json()).pad_id == ours.pad_id
    # What `enable_padding()` writes where nobody says more fits few vocabularies.
    theirs = KINDS["t5"]()
    theirs.enable_padding(pad_id=7)
    assert Tokenizer.from_json(theirs.to_str()).pad_id == theirs.token_to_id("<pad>")


@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "t5", "twice"])
def test_masking(name):
    theirs = KINDS[name]()
    ours = Tokenizer.from_json(theirs.to_str(), mask_token="<extra_id_0>" if name == "t5" else None)
    texts = [f"{text} {token}" for text in TEXTS for token in ("[SEP]", "</s>", "☕")]
    batch = ours.encode_masked_batch(
        texts, mlm_probability=0.3, seed=1, epoch=2, indices=range(len(texts)), max_tokens=30
    )
    ids, seen, labels, real = (
        np.asarray(batch[key]) for key in ("token_ids", "masked_ids", "mlm_labels", "text_mask")
    )
    picked, special = labels != -100, np.isin(ids, ours.special_ids)
    assert special[real].any() and not picked[special].any() and not picked[~real].any()
    assert 0.25 < picked[real & ~special].mean() < 0.35
    assert (labels[picked] == ids[picked]).all() and (seen[~picked] == ids[~picked]).all()
    masked = seen[picked] == ours.mask_id
    other = ~masked & (seen[picked] != ids[picked])
    assert 0.75 < masked.mean() < 0.85 and 0.05 < other.mean() < 0.15
    assert not np.isin(seen[picked][~masked], ours.special_ids).any()
    assert (seen[~real] == ours.pad_id).all()


def test_masking_without_a_mask_token():
    ours = Tokenizer.from_json(KINDS["gpt2"]().to_str())
    arguments = {"seed": 0, "epoch": 0, "indices": [0]}
    with pytest.raises(ValueError, match=r"mlm_probability: 0\.15; expected 0 .*mask_token=\.\.\."):
        ours.encode_masked_batch(["a"], mlm_probability=0.15, **arguments)
    batch = ours.encode_masked_batch(["a cup"], mlm_probability=0, **arguments)
    assert np.array_equal(np.asarray(batch["masked_ids"]), np.asarray(batch["token_ids"]))
    assert (np.asarray(batch["mlm_labels"]) == -100).all()


def test_what_cannot_be_encoded_is_an_error():
    content = json.loads(KINDS["word-level"]().to_str())
    content["model"]["unk_token"] = "nothing of the kind"
    ours = Tokenizer.from_json(json.dumps(content))
    assert ours.encode("The")[0] and ours.unknown_id == 0
    with pytest.raises(ValueError, match="tokenizer: WordLevel error: Missing"):
        ours.encode("never seen")
