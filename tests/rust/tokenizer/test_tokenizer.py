"""The tokenizer against the published vocabulary's own implementation."""

import json
import pickle
import random
import threading
from pathlib import Path

import numpy as np
import pytest

from fiber import _core
from fiber._core import Tokenizer
from tests.peer_versions import needs

pytestmark = pytest.mark.oldest

ROBERTA = Path(__file__).parents[3] / "../shared/assets/roberta-base"
CAPTIONS = [
    f"a {size} {color} {shape} {side} of the {other} one"
    for size in ("small", "large")
    for color in ("red", "blue", "green")
    for other in ("red", "blue")
    for shape in ("cube", "sphere", "ring")
    for side in ("left", "right")
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, 300)


def test_empty_text(tokenizer):
    assert tokenizer.encode("") == ([0, 2], [(0, 0), (0, 0)])
    assert tokenizer.encode("", max_tokens=2) == ([0, 2], [(0, 0), (0, 0)])
    assert tokenizer.decode([]) == ""


def test_no_texts(tokenizer):
    for offsets in (False, True):
        batch = tokenizer.encode_batch([], offsets=offsets)
        assert batch["token_ids"].shape == batch["text_mask"].shape == (0, 0)
    assert tokenizer.encode_batch([], pad_to=5)["token_ids"].shape == (0, 5)
    assert np.asarray(tokenizer.positive_map("a", [])).shape[0] == 0


def test_special_tokens(tokenizer):
    assert len(tokenizer) == tokenizer.vocab_size == 300
    assert (tokenizer.pad_id, tokenizer.unknown_id, tokenizer.mask_id) == (1, 3, 299)
    assert (tokenizer.start_ids, tokenizer.end_ids) == ([0], [2])
    assert tokenizer.special_ids == [0, 1, 2, 3, 299] and tokenizer.is_fast
    tokenizer.check_for_models()
    assert tokenizer.encode("<mask>")[0] == [0, 299, 2]
    assert tokenizer.encode("<s><pad></s><unk>")[0] == [0, 0, 1, 2, 3, 2]


@pytest.mark.parametrize(
    "text",
    ["a red cube", " two  spaces ", "naïve e\u0301 \u0301", "👩‍👩‍👧 ☕", "\n\t\u00a0x", "汉字"],
)
def test_any_text_comes_back(tokenizer, text):
    ids, offsets = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    # Every character that is no space belongs to a token.
    covered = {i for start, end in offsets for i in range(start, end)}
    assert covered >= {i for i, c in enumerate(text) if not c.isspace()}


def test_offsets_name_the_words(tokenizer):
    text = "the 🟥 red cube"
    _, offsets = tokenizer.encode(text)
    words = {text[start:end] for start, end in offsets}
    assert {"the", "🟥", "red"} <= words and not any(" " in word for word in words)


def test_truncation_keeps_the_end(tokenizer):
    whole, whole_offsets = tokenizer.encode(CAPTIONS[0])
    for limit in range(2, len(whole) + 2):
        ids, offsets = tokenizer.encode(CAPTIONS[0], max_tokens=limit)
        kept = min(limit, len(whole)) - 1
        assert ids == [*whole[:kept], 2] and offsets == [*whole_offsets[:kept], (0, 0)]
    with pytest.raises(ValueError, match="max_tokens: 1; expected 2 or more"):
        tokenizer.encode("a", max_tokens=1)


@pytest.mark.parametrize("limit", [None, 2, 7, 100])
@pytest.mark.parametrize("pad_to", [None, 60])
def test_a_batch_is_its_texts_padded(tokenizer, limit, pad_to):
    rng = random.Random(1)
    texts = ["", *CAPTIONS[:5], *(random_text(rng)[:20] for _ in range(20)), "the <mask> cube"]
    encoded = [tokenizer.encode(text, max_tokens=limit) for text in texts]
    pad_to = pad_to and max(pad_to, *(len(ids) for ids, _ in encoded))
    batch = tokenizer.encode_batch(texts, max_tokens=limit, pad_to=pad_to, offsets=True)
    length = pad_to or max(len(ids) for ids, _ in encoded)
    ids, mask, offsets = (np.asarray(batch[k]) for k in ("token_ids", "text_mask", "offsets"))
    assert (ids.dtype, mask.dtype, offsets.dtype) == (np.int64, np.bool_, np.int64)
    assert ids.shape == mask.shape == (len(texts), length) and offsets.shape == (*ids.shape, 2)
    for row, (expected, spans) in enumerate(encoded):
        rest = length - len(expected)
        assert ids[row].tolist() == expected + [1] * rest
        assert mask[row].tolist() == [True] * len(expected) + [False] * rest
        assert offsets[row].tolist() == [list(span) for span in spans] + [[0, 0]] * rest
    without = tokenizer.encode_batch(texts, max_tokens=limit, pad_to=pad_to)
    assert set(without) == {"token_ids", "text_mask"}
    assert np.array_equal(np.asarray(without["token_ids"]), ids)


def test_masking_depends_on_the_sample_only(tokenizer):
    def run(texts, indices, **changes):
        settings = {"mlm_probability": 0.3, "seed": 1, "epoch": 2, "pad_to": 40} | changes
        batch = tokenizer.encode_masked_batch(texts, indices=indices, **settings)
        return {name: np.asarray(values) for name, values in batch.items()}

    batch = run(CAPTIONS, list(range(len(CAPTIONS))))
    ids, seen, labels = batch["token_ids"], batch["masked_ids"], batch["mlm_labels"]
    picked = labels != -100
    assert 0.2 < picked[ids > 3].mean() < 0.4 and not picked[ids <= 3].any()
    assert (labels[picked] == ids[picked]).all() and (seen[~picked] == ids[~picked]).all()
    assert 0.6 < (seen[picked] == tokenizer.mask_id).mean() < 0.95
    alone = run(CAPTIONS[5:6], [5])
    assert all(np.array_equal(alone[name][0], values[5]) for name, values in batch.items())
    assert not np.array_equal(run(CAPTIONS[5:6], [5], epoch=3)["masked_ids"][0], seen[5])
    assert (run(CAPTIONS, [0] * len(CAPTIONS), mlm_probability=0)["mlm_labels"] == -100).all()


def test_draws_of_masked_words_stay_as_they_are(tokenizer):
    """What a seed masks decides what a run learns; recorded from the version with fixed ids."""
    batch = tokenizer.encode_masked_batch(
        ["a small red cube " * 3], mlm_probability=1, seed=1, epoch=0, indices=[12]
    )
    expected = [0, 299, 299, 299, 299, 299, 224, 299, 299, 120, 299, 299, 299, 299, 204, 296, 299]
    assert np.asarray(batch["masked_ids"])[0, :17].tolist() == expected


def test_wrong_batches_are_named(tokenizer):
    with pytest.raises(ValueError, match="pad_to: 3; expected"):
        tokenizer.encode_batch(CAPTIONS, pad_to=3)
    with pytest.raises(ValueError, match="max_tokens: 1; expected 2"):
        tokenizer.encode_batch(CAPTIONS, max_tokens=1)
    with pytest.raises(ValueError, match="max_tokens: 1; expected 2"):
        tokenizer.positive_map("a", [], max_tokens=1)
    with pytest.raises(TypeError):
        tokenizer.encode_batch("a text alone")
    masking = {"mlm_probability": 0.5, "seed": 0, "epoch": 0}
    with pytest.raises(ValueError, match=r"indices: 1 \w+; expected one for each of 2 texts"):
        tokenizer.encode_masked_batch(["a", "b"], indices=[0], **masking)
    with pytest.raises(ValueError, match="mlm_probability: 2; expected 0 to 1"):
        tokenizer.encode_masked_batch([], indices=[], **(masking | {"mlm_probability": 2}))


@pytest.mark.parametrize("limit", [None, 2, 30, 1000])
def test_positive_maps_of_short_and_kept_texts(tokenizer, limit):
    for text in ("a red cube", "☕ the red cube. ", "the red ring. ☕ a blue sphere. " * 20):
        boxes = [[(2, 5)], [], [(0, 1), (len(text) - 3, len(text))], [(0, len(text))]]
        for _ in range(2):
            _, offsets = tokenizer.encode(text, max_tokens=limit)
            expected = np.asarray(_core.positive_map(offsets, boxes))
            found = np.asarray(tokenizer.positive_map(text, boxes, max_tokens=limit))
            assert found.dtype == np.bool_ and np.array_equal(found, expected)


def test_threads_share_a_tokenizer(tokenizer):
    expected = [tokenizer.encode(text) for text in CAPTIONS]
    wrong = []

    def work():
        for _ in range(20):
            wrong.extend(
                t for t, e in zip(CAPTIONS, expected, strict=True) if tokenizer.encode(t) != e
            )

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_other_kinds_of_tokenizers_are_encoded_too(tokenizer):
    """What is no plain byte-level BPE goes through the crate, in batches as alone."""
    content = json.loads(tokenizer.to_json())
    content["normalizer"] = {"type": "Lowercase"}
    other = Tokenizer.from_json(json.dumps(content))
    texts = ["A RED Cube", "the BLUE ring" * 30]
    assert [other.encode(text) for text in texts] == [tokenizer.encode(t.lower()) for t in texts]
    theirs, ours = (t.encode_batch(texts, offsets=True) for t in (other, tokenizer))
    assert not np.array_equal(theirs["token_ids"], ours["token_ids"])
    ours = tokenizer.encode_batch([text.lower() for text in texts], offsets=True)
    assert all(np.array_equal(theirs[name], ours[name]) for name in ours)


def test_files_and_pickles(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    for again in (
        Tokenizer.from_file(path),
        Tokenizer.from_json(tokenizer.to_json()),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert again.to_json() == tokenizer.to_json()
        assert again.encode(CAPTIONS[3]) == tokenizer.encode(CAPTIONS[3])


def test_training_is_deterministic():
    assert Tokenizer.train(CAPTIONS, 290).to_json() == Tokenizer.train(CAPTIONS, 290).to_json()
    assert Tokenizer.train([], 1000).vocab_size == 261
    with pytest.raises(ValueError, match="vocab_size: 260 tokens; expected 261 or more"):
        Tokenizer.train(CAPTIONS, 260)


def test_file_errors(tokenizer, tmp_path):
    missing = tmp_path / "missing.json"
    with pytest.raises(FileNotFoundError) as caught:
        Tokenizer.from_file(missing)
    assert caught.value.filename == str(missing)
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with pytest.raises(ValueError, match=r"broken\.json: tokenizer"):
        Tokenizer.from_file(broken)
    other = tmp_path / "other.json"
    other.write_text(tokenizer.to_json().replace('"<mask>"', '"[MASK]"'))
    with pytest.raises(ValueError, match=r"other\.json: mask_token: '<mask>' is not in"):
        Tokenizer.from_file(other, mask_token="<mask>")
    with pytest.raises(ValueError, match=r"<mask> has no id; expected 299 in a vocabulary of 300"):
        Tokenizer.from_file(other).check_for_models()
    with pytest.raises(ValueError, match="'model' has no 'type'; expected one of BPE, Word"):
        Tokenizer.from_json('{"model": {}}')
    with pytest.raises(FileNotFoundError):
        tokenizer.save(tmp_path / "no" / "folder.json")
    with pytest.raises(FileNotFoundError):
        Tokenizer.from_vocabulary(missing, missing)
    with pytest.raises(ValueError, match="ids: 300; expected less than 300"):
        tokenizer.decode([300])


def test_texts_of_another_type_are_named(tokenizer):
    expected = "expected a sequence of str"
    with pytest.raises(TypeError, match=f"^texts is of type str; {expected}"):
        tokenizer.encode_batch("abc")
    with pytest.raises(TypeError, match=f"^texts is of type int; {expected}"):
        tokenizer.encode_batch(5)
    with pytest.raises(TypeError, match=rf"^texts\[1\] is not a str; {expected}"):
        tokenizer.encode_batch(["a", 5])
    with pytest.raises(TypeError, match=f"^texts is of type str; {expected}"):
        tokenizer.encode_masked_batch("abc", mlm_probability=0, seed=0, epoch=0, indices=[0] * 3)


def random_text(rng: random.Random) -> str:
    """Unicode of every plane, or words and marks that byte-level BPE splits in special ways."""
    count = rng.randint(0, 30)
    if rng.random() < 0.4:
        ranges = [(0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x1F300, 0x1F6FF), (0x4E00, 0x9FFF)]
        ranges += [(0x0, 0xD7FF), (0xE000, 0x10FFFF), (0x200B, 0x200F)]
        return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(count))
    words = [
        "the",
        "Dog",
        "'s",
        "don't",
        "42",
        " ",
        "  ",
        "\n",
        "é",
        "e\u0301",
        "😀",
        "👨‍👩‍👧",
        "naïve",
    ]
    words += ["!!", "...", "<s>", "</s>", "<pad>", "<unk>", "<mask>"]
    return " ".join(rng.choice(words) for _ in range(count))


@needs("transformers", "5.24", "it could not read vocab.json and merges.txt")
def test_equals_transformers_on_the_published_vocabulary():
    if not ROBERTA.exists():
        pytest.skip("../shared/assets/roberta-base is absent")
    transformers = pytest.importorskip("transformers")
    # As in the published tokenizer.json, and in transformers 4 without being told.
    mask = transformers.AddedToken("<mask>", lstrip=True)
    theirs = transformers.RobertaTokenizerFast.from_pretrained(ROBERTA, mask_token=mask)
    ours = Tokenizer.from_vocabulary(ROBERTA / "vocab.json", ROBERTA / "merges.txt")
    assert (ours.vocab_size, ours.mask_id) == (50265, 50264)
    rng = random.Random(0)
    for _ in range(1500):
        text, limit = random_text(rng), rng.randint(2, 40)
        expected = theirs(text, return_offsets_mapping=True)
        ids, offsets = ours.encode(text)
        assert ids == expected["input_ids"], repr(text)
        assert offsets == [tuple(span) for span in expected["offset_mapping"]], repr(text)
        expected = theirs(text, truncation=True, max_length=limit)
        assert ours.encode(text, max_tokens=limit)[0] == expected["input_ids"], repr(text)
    assert ours.encode("a <mask> sits")[0] == [0, 102, 50264, 6476, 2]
    for text in (
        "a <mask> b",
        "a  <mask>b",
        "a<mask>",
        " <mask>",
        "a\n<mask> <mask>",
        "<s> <mask>",
    ):
        expected = theirs(text, return_offsets_mapping=True)
        ids, offsets = ours.encode(text)
        assert ids == expected["input_ids"], repr(text)
        assert offsets == [tuple(span) for span in expected["offset_mapping"]], repr(text)
