"""The tokenizer against the published vocabulary's own implementation."""

import pickle
import random
from pathlib import Path

import pytest

from fiber._core import Tokenizer

ROBERTA = Path(__file__).parents[2] / "../shared/assets/roberta-base"
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


def test_special_tokens(tokenizer):
    assert len(tokenizer) == tokenizer.vocab_size == 300
    assert tokenizer.mask_id == 299
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
    with pytest.raises(ValueError, match=r"other\.json: <mask> has no id; expected 299"):
        Tokenizer.from_file(other)
    with pytest.raises(FileNotFoundError):
        tokenizer.save(tmp_path / "no" / "folder.json")
    with pytest.raises(FileNotFoundError):
        Tokenizer.from_vocabulary(missing, missing)
    with pytest.raises(ValueError, match="ids: 300 is no token"):
        tokenizer.decode([300])


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
    words += ["!!", "...", "<s>", "</s>", "<pad>", "<unk>"]
    return " ".join(rng.choice(words) for _ in range(count))


def test_equals_transformers_on_the_published_vocabulary():
    if not ROBERTA.exists():
        pytest.skip("../shared/assets/roberta-base is absent")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.RobertaTokenizerFast.from_pretrained(ROBERTA)
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
