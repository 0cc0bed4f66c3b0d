import json
import math
import random
import zlib
from pathlib import Path

import numpy as np
import pytest

from fiber.data import Tokenizer
from fiber.data.rng import Rng
from tests.golden import METER

#: Outputs of the first implementation, in Python with numpy's Philox: numbers, masked ids, labels.
RECORDED = json.loads(Path(__file__).with_name("whole_words.json").read_text())

TEXT = "a small circle, isn't it 1024px wide? na\u00efve caf\u00e9 \u6771\u4eac!"
WORDS = ["a", "small", "circle", ",", "isn't", "it", "1024", "px", "wide", "?"]
WORDS += ["na\u00efve", "caf\u00e9", "\u6771\u4eac", "!"]


@pytest.fixture(scope="module", params=[261, 300, 400], ids=["bytes", "parts", "words"])
def tokenizer(request):
    return Tokenizer.train([TEXT] * 20, request.param)


def masked(tokenizer, texts, unit="word", *, probability=0.5, seed=0, first=0, epoch=0, **options):
    """Token ids, masked ids and labels of texts, whose samples are numbered from `first`."""
    indices = [first + row for row in range(len(texts))]
    options |= {"mlm_probability": probability, "seed": seed, "epoch": epoch, "indices": indices}
    batch = tokenizer.encode_masked_batch(texts, mlm_unit=unit, **options)
    return [np.asarray(batch[name]) for name in ("token_ids", "masked_ids", "mlm_labels")]


def word_numbers(tokenizer, text, max_tokens=None):
    """A number for each token that tokens of a word share, -1 for special tokens.

    Tokens of a word are picked together for every sample, those of two words by chance.
    """
    _, _, labels = masked(tokenizer, [text] * 80, max_tokens=max_tokens)
    numbers = {}
    return [
        numbers.setdefault(picked.tobytes(), len(numbers)) if picked.any() else -1
        for picked in (labels != -100).T
    ]


def renumbered(numbers):
    """The same, in the order of the first tokens, without the gaps."""
    known = {}
    return [-1 if number < 0 else known.setdefault(number, len(known)) for number in numbers]


@pytest.mark.parametrize("text", ["", "   "], ids=["empty", "spaces"])
def test_a_text_without_words_loses_nothing(tokenizer, text):
    numbers = word_numbers(tokenizer, text)
    assert numbers[0] == numbers[-1] == -1
    ids, inputs, labels = masked(tokenizer, [""], probability=1.0)
    assert np.array_equal(inputs, ids)
    assert (labels == -100).all()
    assert masked(tokenizer, [])[0].shape == (0, 0)


def test_words_are_found_however_finely_they_are_cut(tokenizer):
    ids = tokenizer.encode(TEXT)[0]
    numbers = word_numbers(tokenizer, TEXT)
    assert numbers[0] == numbers[-1] == -1
    words = {}
    for token, number in zip(ids[1:-1], numbers[1:-1], strict=True):
        words.setdefault(number, []).append(token)
    found = [tokenizer.decode(tokens).strip() for tokens in words.values()]
    # A lone space that was not joined to its word is a token of its own.
    assert [word for word in found if word] == WORDS


def test_a_word_is_picked_whole_and_padding_never(tokenizer):
    texts = [TEXT, "a small circle", TEXT]
    ids, inputs, labels = masked(tokenizer, texts, first=5)
    picked = labels != -100
    assert picked.any() and not picked.all()
    for row, text in enumerate(texts):
        numbers = np.array(word_numbers(tokenizer, text))
        assert not picked[row, len(numbers) :].any()
        assert not picked[row, : len(numbers)][numbers == -1].any()
        for word in set(numbers.tolist()):
            assert len(set(picked[row, : len(numbers)][numbers == word].tolist())) == 1
    assert np.array_equal(labels[picked], ids[picked])
    assert np.array_equal(inputs[~picked], ids[~picked])


def test_draws_depend_on_the_sample_and_the_seed_alone():
    tokenizer = Tokenizer.train([TEXT] * 20, 300)
    _, inputs, labels = masked(tokenizer, [TEXT] * 4, first=8)
    _, later, _ = masked(tokenizer, [TEXT] * 2, first=10)
    assert np.array_equal(inputs[2:], later)
    assert not np.array_equal(inputs[0], inputs[1])
    _, _, other = masked(tokenizer, [TEXT] * 4, first=8, seed=1)
    assert not np.array_equal(labels, other)
    _, _, other = masked(tokenizer, [TEXT] * 4, first=8, epoch=1)
    assert not np.array_equal(labels, other)


def test_proportions():
    tokenizer = Tokenizer.train([TEXT] * 20, 300)
    ids, inputs, labels = masked(tokenizer, [TEXT] * 800, probability=0.15)
    numbers = np.array(word_numbers(tokenizer, TEXT))
    count = len(set(numbers.tolist())) - 1
    picked = labels != -100
    starts = (np.diff(numbers, prepend=-2) != 0) & (numbers >= 0)
    share = (picked & starts).sum() / (800 * count)
    # Three standard deviations of a binomial share.
    assert abs(share - 0.15) < 3 * (0.15 * 0.85 / (800 * count)) ** 0.5
    seen = (inputs == tokenizer.mask_id)[picked].mean()
    assert abs(seen - 0.8) < 3 * (0.8 * 0.2 / int(picked.sum())) ** 0.5
    same = (inputs == ids)[picked].mean()
    # A token drawn at random is the original one once in a vocabulary.
    assert abs(same - 0.1) < 3 * (0.1 * 0.9 / int(picked.sum())) ** 0.5 + 1 / 300


@pytest.mark.parametrize("unit", ["token", "word", "position"])
def test_wrong_arguments_are_named(unit):
    tokenizer = Tokenizer.train([TEXT], 261)
    with pytest.raises(ValueError, match=r"probability.*1.5.*0.*1"):
        masked(tokenizer, ["a"], unit, probability=1.5, max_tokens=8)
    for seed in (-1, 2**64):
        with pytest.raises(OverflowError):
            masked(tokenizer, ["a"], unit, seed=seed, max_tokens=8)


def test_an_unknown_unit_and_a_missing_length_are_named():
    tokenizer = Tokenizer.train([TEXT], 261)
    with pytest.raises(ValueError, match=r"mlm_unit: 'letter'; expected 'token', 'word' or"):
        masked(tokenizer, ["a"], "letter")
    with pytest.raises(ValueError, match=r"max_tokens: None; expected .* 'position'"):
        masked(tokenizer, ["a"], "position")


def crc(array):
    return zlib.crc32(array.astype("<i8").tobytes())


@pytest.mark.parametrize("size", [261, 300, 400])
def test_recorded_outputs_of_many_seeds(size):
    tokenizer = Tokenizer.train([TEXT] * 20, size)
    texts = RECORDED["texts"]
    for text, recorded in zip(texts, RECORDED["numbers"][str(size)], strict=True):
        numbers = word_numbers(tokenizer, text)
        assert set(recorded[len(numbers) :]) <= {-1}
        assert numbers == renumbered(recorded[: len(numbers)])
    _, inputs, labels = masked(tokenizer, texts, seed=3, first=11)
    (expected,) = (rows for of, *rows in RECORDED["rows"] if of == size)
    assert [inputs.tolist(), labels.tolist()] == expected
    cases = [case for of, *case in RECORDED["sums"] if of == size]
    assert len(cases) == 48
    for probability, seed, first, *sums in cases:
        _, inputs, labels = masked(
            tokenizer, texts * 40, probability=probability, seed=seed, first=first
        )
        assert [crc(inputs), crc(labels)] == sums, (probability, seed, first)


def test_recorded_outputs_of_random_texts():
    words = ["left", "cup", "dogs", "it's", "2024", "x-ray", "na\u00efve", "\u6771\u4eac", "..."]
    words += ["(a)", "b/c", "don't", "e\u0301", "\U0001f600"]
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=draw.randrange(0, 30))) for _ in range(300)]
    tokenizer = Tokenizer.train(texts, 500)
    _, *found = masked(tokenizer, texts, probability=0.3, seed=9, first=123456, max_tokens=40)
    assert [crc(array) for array in found] == RECORDED["random"][1:]


#: Number of draws that were recorded, positions of a padded text, and selected positions.
DRAWS, PADDED, SELECTED = 4000, 50, 8
#: What the published code drew for two texts, by text.
COUNTED = {
    name.split("'")[1]: value
    for name, value in json.loads((METER / "extras.json").read_text()).items()
    if name.startswith("whole-word collator")
}


def positions(tokenizer, texts, *, max_tokens=PADDED, probability=0.15, **options):
    return masked(
        tokenizer, texts, "position", probability=probability, max_tokens=max_tokens, **options
    )


def naive_positions(tokenizer, text, *, max_tokens, probability, seed, epoch, index):
    """What the first implementation did, in Python."""
    ids = tokenizer.encode(text, max_tokens=max_tokens)[0]
    inputs, labels = list(ids), [-100] * len(ids)
    rng = Rng.of_record(seed, 251, epoch, index)
    drawn = rng.permuted(max_tokens)
    for _ in range(round(probability * max_tokens)):
        position = next(drawn)
        kind, other = rng.random(), rng.integer(tokenizer.vocab_size)
        if position < len(ids) and ids[position] not in tokenizer.special_ids:
            labels[position] = ids[position]
            if kind < 0.8:
                inputs[position] = tokenizer.mask_id
            elif kind < 0.9:
                inputs[position] = other
    return [inputs, labels]


def share_of(count, words):
    """Probability that `count` of the words are among the selected positions (hypergeometric)."""
    ways = math.comb(words, count) * math.comb(PADDED - words, SELECTED - count)
    return ways / math.comb(PADDED, SELECTED)


@pytest.fixture(scope="module")
def small():
    return Tokenizer.train([TEXT] * 20, 300)


def letters(tokenizer, tokens):
    """A text of `tokens` tokens, with <s> and </s>."""
    text = "z" * (tokens - 2)
    assert len(tokenizer.encode(text)[0]) == tokens
    return text


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**63 + 1, 2**64 - 1])
def test_positions_are_those_of_numpys_generator(small, seed):
    """Including more than one block of random numbers, and epochs that repeat."""
    texts = [TEXT, "", "<pad> a <mask>", letters(small, 40)]
    for probability, max_tokens in ((0.15, 50), (0.5, 5), (1.0, 64), (0.0, 9)):
        for epoch, first in ((0, 0), (3, 2**32 - 9), (2**16 + 1, 7)):
            options = {"max_tokens": max_tokens, "probability": probability, "seed": seed}
            ids, inputs, labels = positions(small, texts, epoch=epoch, first=first, **options)
            for row, text in enumerate(texts):
                expected = naive_positions(small, text, epoch=epoch, index=first + row, **options)
                rest = [small.pad_id] * (ids.shape[1] - len(expected[0]))
                assert inputs[row].tolist() == expected[0] + rest
                assert labels[row].tolist() == expected[1] + [-100] * len(rest)


def test_positions_of_empty_texts_and_batches(small):
    _, _, labels = positions(small, [""] * 3, probability=1.0)
    assert (labels == -100).all()
    assert positions(small, [])[1].shape == (0, 0)
    _, _, labels = positions(small, [letters(small, 9)] * 2, probability=1.0, pad_to=12)
    assert ((labels != -100).sum(1) == 7).all()


@pytest.mark.parametrize("text", COUNTED)
def test_positions_are_drawn_as_in_the_published_code(small, text):
    recorded = COUNTED[text]
    ids, inputs, labels = positions(small, [letters(small, recorded["tokens"])] * DRAWS)
    words = recorded["tokens"] - 2
    picked = labels != -100
    counts = np.bincount(picked.sum(1), minlength=SELECTED + 1).tolist()
    assert len(counts) == SELECTED + 1
    theirs = recorded["picked_counts_of_4000"]
    for count, ours in enumerate(counts):
        share = share_of(count, words)
        deviation = (DRAWS * share * (1 - share)) ** 0.5
        # Three standard deviations of ours, and of the difference of two counts.
        assert abs(ours - DRAWS * share) <= 3 * deviation + 1e-9
        assert abs(ours - theirs.get(str(count), 0)) <= 3 * 2**0.5 * deviation + 1e-9
    number = int(picked.sum())
    seen = (inputs == small.mask_id)[picked].mean()
    same = (inputs == ids)[picked].mean()
    for ours, expected, name in ((seen, 0.8, "mask_share"), (same, 0.1, "same_share")):
        deviation = (expected * (1 - expected) / number) ** 0.5
        # A random token is <mask> or the original one once in a vocabulary.
        assert abs(ours - expected) < 3 * deviation + 1 / 300
        assert abs(ours - recorded[name]) < 3 * 2**0.5 * deviation + 1 / 300


def test_eight_of_fifty_positions_and_never_a_special_token(small):
    # Unknown words and <mask> in a text are special, too.
    text = "z" * 19 + "<s><pad></s><unk><mask>" + "z" * 24
    ids, inputs, labels = positions(small, [text] * 300)
    special = [0, 1, 2, 3, small.mask_id]
    assert ids.shape == (300, PADDED) and ids[0, 20:25].tolist() == special
    picked = labels != -100
    assert not picked[np.isin(ids, special)].any()
    assert np.array_equal(labels[picked], ids[picked])
    assert np.array_equal(inputs[~picked], ids[~picked])
    assert picked.sum(1).max() == SELECTED
    # 43 of the 50 positions hold words.
    mean, deviation = SELECTED * 43 / 50, (SELECTED * 43 / 50 * 7 / 50 * 42 / 49 / 300) ** 0.5
    assert abs(picked.sum(1).mean() - mean) < 3 * deviation
    _, _, labels = positions(small, [letters(small, 40)] * 300, max_tokens=40, probability=0.15)
    assert (labels != -100).sum(1).max() == 6


def test_positions_depend_on_the_sample_and_the_seed_alone(small):
    text = letters(small, 20)
    _, inputs, labels = positions(small, [text] * 4)
    _, again, _ = positions(small, [text] * 2, first=2, pad_to=31)
    assert np.array_equal(inputs[2:], again[:, :20])
    _, _, later = positions(small, [text] * 4, epoch=1)
    assert not np.array_equal(labels[3], later[3])
    assert not np.array_equal(labels[0], labels[1])
    _, _, other = positions(small, [text] * 4, seed=1)
    assert not np.array_equal(labels, other)
