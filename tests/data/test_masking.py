import dataclasses
import json
import math
import random
import zlib
from pathlib import Path

import pytest
import torch

from fiber.data import ImageTextBatch, Tokenizer
from fiber.data.masking import PaddedPositions, WholeWords
from tests.golden import METER

#: Outputs of the first implementation, in Python with numpy's Philox: numbers, masked ids, labels.
RECORDED = json.loads(Path(__file__).with_name("whole_words.json").read_text())

TEXT = "a small circle, isn't it 1024px wide? na\u00efve caf\u00e9 \u6771\u4eac!"
WORDS = ["a", "small", "circle", ",", "isn't", "it", "1024", "px", "wide", "?"]
WORDS += ["na\u00efve", "caf\u00e9", "\u6771\u4eac", "!"]


@pytest.fixture(scope="module", params=[261, 300, 400], ids=["bytes", "parts", "words"])
def tokenizer(request):
    return Tokenizer.train([TEXT] * 20, request.param)


def whole_words(tokenizer, probability=0.5, seed=0):
    return WholeWords(tokenizer, probability=probability, seed=seed)


def batch_of(tokenizer, texts, max_tokens=None):
    rows = [tokenizer.encode(text, max_tokens=max_tokens)[0] for text in texts]
    longest = max(map(len, rows), default=0)
    ids = torch.tensor([row + [1] * (longest - len(row)) for row in rows], dtype=torch.int64)
    count = len(texts)
    sizes = torch.ones(count, 2, dtype=torch.int64)
    return ImageTextBatch(
        keys=tuple(map(str, range(count))),
        images=torch.zeros(count, 3, 1, 1),
        image_sizes=sizes,
        original_sizes=sizes,
        token_ids=ids,
        text_mask=ids != 1,
        image_ids=torch.arange(count),
        masked_ids=ids,
        mlm_labels=torch.full_like(ids, -100),
    )


@pytest.mark.parametrize("text", ["", "   "], ids=["empty", "spaces"])
def test_a_text_without_words_loses_nothing(tokenizer, text):
    batch = batch_of(tokenizer, [text])
    assert (whole_words(tokenizer).word_numbers(batch.token_ids)[:, [0, -1]] == -1).all()
    masked = whole_words(tokenizer, 1.0).mask(batch_of(tokenizer, [""]), first_sample=0)
    assert torch.equal(masked.masked_ids, masked.token_ids)
    assert (masked.mlm_labels == -100).all()


def test_words_are_found_however_finely_they_are_cut(tokenizer):
    ids = batch_of(tokenizer, [TEXT]).token_ids
    numbers = whole_words(tokenizer).word_numbers(ids)[0].tolist()
    assert numbers[0] == numbers[-1] == -1
    words = {}
    for token, number in zip(ids[0, 1:-1].tolist(), numbers[1:-1], strict=True):
        words.setdefault(number, []).append(token)
    found = [tokenizer.decode(tokens).strip() for tokens in words.values()]
    # A lone space that was not joined to its word is a token of its own.
    assert [word for word in found if word] == WORDS


def test_a_word_is_picked_whole_and_padding_never(tokenizer):
    words = whole_words(tokenizer)
    batch = batch_of(tokenizer, [TEXT, "a small circle", TEXT])
    numbers = words.word_numbers(batch.token_ids)
    masked = words.mask(batch, first_sample=5)
    picked = masked.mlm_labels != -100
    assert picked.any() and not picked.all()
    assert not picked[numbers == -1].any()
    for row in range(3):
        for word in set(numbers[row].tolist()):
            assert len(set(picked[row][numbers[row] == word].tolist())) == 1
    assert torch.equal(masked.mlm_labels[picked], batch.token_ids[picked])
    assert torch.equal(masked.masked_ids[~picked], batch.token_ids[~picked])


def test_draws_depend_on_the_sample_and_the_seed_alone():
    tokenizer = Tokenizer.train([TEXT] * 20, 300)
    batch = batch_of(tokenizer, [TEXT] * 4)
    words = whole_words(tokenizer)
    masked = words.mask(batch, first_sample=8)
    later = words.mask(batch_of(tokenizer, [TEXT] * 2), first_sample=10)
    assert torch.equal(masked.masked_ids[2:], later.masked_ids)
    assert not torch.equal(masked.masked_ids[0], masked.masked_ids[1])
    other = whole_words(tokenizer, seed=1).mask(batch, first_sample=8)
    assert not torch.equal(masked.mlm_labels, other.mlm_labels)


def test_proportions():
    tokenizer = Tokenizer.train([TEXT] * 20, 300)
    batch = batch_of(tokenizer, [TEXT] * 800)
    words = whole_words(tokenizer, 0.15)
    masked = words.mask(batch, first_sample=0)
    numbers = words.word_numbers(batch.token_ids)
    count = len(set(numbers[0].tolist())) - 1
    picked = masked.mlm_labels != -100
    starts = numbers.diff(dim=1, prepend=torch.full((800, 1), -2)) != 0
    share = (picked & starts & (numbers >= 0)).sum() / (800 * count)
    # Three standard deviations of a binomial share.
    assert abs(share - 0.15) < 3 * (0.15 * 0.85 / (800 * count)) ** 0.5
    seen = (masked.masked_ids == tokenizer.mask_id)[picked].float().mean()
    assert abs(seen - 0.8) < 3 * (0.8 * 0.2 / int(picked.sum())) ** 0.5
    same = (masked.masked_ids == batch.token_ids)[picked].float().mean()
    # A token drawn at random is the original one once in a vocabulary.
    assert abs(same - 0.1) < 3 * (0.1 * 0.9 / int(picked.sum())) ** 0.5 + 1 / 300


def test_a_wrong_probability_is_named():
    tokenizer = Tokenizer.train([TEXT], 261)
    with pytest.raises(ValueError, match=r"probability.*1.5.*0.*1"):
        whole_words(tokenizer, 1.5)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_named(seed):
    with pytest.raises(ValueError, match=f"seed is {seed}; expected"):
        whole_words(Tokenizer.train([TEXT], 261), seed=seed)


def crc(tensor):
    return zlib.crc32(tensor.numpy().astype("<i8").tobytes())


@pytest.mark.parametrize("size", [261, 300, 400])
def test_recorded_outputs_of_many_seeds(size):
    tokenizer = Tokenizer.train([TEXT] * 20, size)
    few, many = (batch_of(tokenizer, RECORDED["texts"] * times) for times in (1, 40))
    numbers = whole_words(tokenizer).word_numbers(few.token_ids)
    assert numbers.tolist() == RECORDED["numbers"][str(size)]
    masked = whole_words(tokenizer, seed=3).mask(few, first_sample=11)
    (expected,) = (rows for of, *rows in RECORDED["rows"] if of == size)
    assert [masked.masked_ids.tolist(), masked.mlm_labels.tolist()] == expected
    cases = [case for of, *case in RECORDED["sums"] if of == size]
    assert len(cases) == 48
    for probability, seed, first, *sums in cases:
        masked = whole_words(tokenizer, probability, seed).mask(many, first_sample=first)
        assert [crc(masked.masked_ids), crc(masked.mlm_labels)] == sums, (probability, seed, first)


def test_recorded_outputs_of_random_texts():
    words = ["left", "cup", "dogs", "it's", "2024", "x-ray", "na\u00efve", "\u6771\u4eac", "..."]
    words += ["(a)", "b/c", "don't", "e\u0301", "\U0001f600"]
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=draw.randrange(0, 30))) for _ in range(300)]
    tokenizer = Tokenizer.train(texts, 500)
    batch = batch_of(tokenizer, texts, max_tokens=40)
    masking = whole_words(tokenizer, 0.3, 9)
    masked = masking.mask(batch, first_sample=123456)
    found = [masking.word_numbers(batch.token_ids), masked.masked_ids, masked.mlm_labels]
    assert [crc(tensor) for tensor in found] == RECORDED["random"]


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    batch = batch_of(tokenizer, ["a"])
    for wrong in (-1, tokenizer.vocab_size):
        batch.token_ids[0, 1] = wrong
        with pytest.raises(ValueError, match=f"token_ids: {wrong}; expected 0 to"):
            whole_words(tokenizer).mask(batch, first_sample=0)


#: Number of draws that were recorded, positions of a padded text, and selected positions.
DRAWS, PADDED, SELECTED = 4000, 50, 8
#: What the published code drew for two texts, by text.
COUNTED = {
    name.split("'")[1]: value
    for name, value in json.loads((METER / "extras.json").read_text()).items()
    if name.startswith("whole-word collator")
}


def positions(tokenizer, *, max_tokens=PADDED, probability=0.15, seed=0):
    return PaddedPositions(tokenizer, probability=probability, max_tokens=max_tokens, seed=seed)


def text_of(tokenizer, tokens, rows, columns=None):
    """A batch of the loader: `tokens` tokens a text with <s> and </s>, padded to `columns`."""
    batch = batch_of(tokenizer, [""] * rows)
    ids = torch.full((rows, columns or tokens), tokenizer.pad_id)
    ids[:, :tokens] = torch.tensor([0, *range(10, 8 + tokens), 2])
    changes = {"token_ids": ids, "masked_ids": ids, "mlm_labels": torch.full_like(ids, -100)}
    samples = tuple((0, row) for row in range(rows))
    return dataclasses.replace(batch, **changes, text_mask=ids != tokenizer.pad_id, samples=samples)


def share_of(count, words):
    """Probability that `count` of the words are among the selected positions (hypergeometric)."""
    ways = math.comb(words, count) * math.comb(PADDED - words, SELECTED - count)
    return ways / math.comb(PADDED, SELECTED)


@pytest.fixture(scope="module")
def small():
    return Tokenizer.train([TEXT] * 20, 300)


def test_positions_of_empty_texts_and_batches(small):
    masked = positions(small, probability=1.0).mask(text_of(small, 2, 3))
    assert (masked.mlm_labels == -100).all()
    assert positions(small).mask(text_of(small, 5, 0)).masked_ids.shape == (0, 5)
    whole = positions(small, probability=1.0).mask(text_of(small, 9, 2, 12))
    assert ((whole.mlm_labels != -100).sum(1) == 7).all()


@pytest.mark.parametrize("text", COUNTED)
def test_positions_are_drawn_as_in_the_published_code(small, text):
    recorded = COUNTED[text]
    masked = positions(small).mask(text_of(small, recorded["tokens"], DRAWS))
    words = recorded["tokens"] - 2
    counts = torch.bincount((masked.mlm_labels != -100).sum(1), minlength=SELECTED + 1).tolist()
    assert len(counts) == SELECTED + 1
    theirs = recorded["picked_counts_of_4000"]
    for count, ours in enumerate(counts):
        share = share_of(count, words)
        deviation = (DRAWS * share * (1 - share)) ** 0.5
        # Three standard deviations of ours, and of the difference of two counts.
        assert abs(ours - DRAWS * share) <= 3 * deviation + 1e-9
        assert abs(ours - theirs.get(str(count), 0)) <= 3 * 2**0.5 * deviation + 1e-9
    picked = masked.mlm_labels != -100
    number = int(picked.sum())
    seen = (masked.masked_ids == small.mask_id)[picked].float().mean()
    same = (masked.masked_ids == masked.token_ids)[picked].float().mean()
    for ours, expected, name in ((seen, 0.8, "mask_share"), (same, 0.1, "same_share")):
        deviation = (expected * (1 - expected) / number) ** 0.5
        # A random token is <mask> or the original one once in a vocabulary.
        assert abs(ours - expected) < 3 * deviation + 1 / 300
        assert abs(ours - recorded[name]) < 3 * 2**0.5 * deviation + 1 / 300


def test_eight_of_fifty_positions_and_never_a_special_token(small):
    assert (positions(small).count, positions(small, max_tokens=40).count) == (SELECTED, 6)
    batch = text_of(small, PADDED, 300)
    # Unknown words and <mask> in a text are special, too.
    special = torch.tensor([0, 1, 2, 3, small.mask_id])
    batch.token_ids[:, 20:25] = special
    masked = positions(small).mask(batch)
    picked = masked.mlm_labels != -100
    assert not picked[torch.isin(batch.token_ids, special)].any()
    assert torch.equal(masked.mlm_labels[picked], batch.token_ids[picked])
    assert torch.equal(masked.masked_ids[~picked], batch.token_ids[~picked])
    assert picked.sum(1).max() == SELECTED
    # 43 of the 50 positions hold words.
    mean, deviation = SELECTED * 43 / 50, (SELECTED * 43 / 50 * 7 / 50 * 42 / 49 / 300) ** 0.5
    assert abs(picked.sum(1).float().mean() - mean) < 3 * deviation


def test_positions_depend_on_the_sample_and_the_seed_alone(small):
    batch = text_of(small, 20, 4)
    masked = positions(small).mask(batch)
    later = dataclasses.replace(text_of(small, 20, 2, 31), samples=((0, 2), (1, 3)))
    again = positions(small).mask(later)
    assert torch.equal(masked.masked_ids[2], again.masked_ids[0, :20])
    assert not torch.equal(masked.mlm_labels[3], again.mlm_labels[1, :20])
    assert not torch.equal(masked.mlm_labels[0], masked.mlm_labels[1])
    other = positions(small, seed=1).mask(batch)
    assert not torch.equal(masked.mlm_labels, other.mlm_labels)


def test_wrong_arguments_of_positions_are_named(small):
    with pytest.raises(ValueError, match=r"probability is 1\.5"):
        positions(small, probability=1.5)
    with pytest.raises(ValueError, match="seed is -1"):
        positions(small, seed=-1)
    with pytest.raises(ValueError, match="0 samples for 2 texts"):
        positions(small).mask(batch_of(small, [TEXT] * 2))
    with pytest.raises(ValueError, match=r"51 tokens.*50"):
        positions(small).mask(text_of(small, 20, 1, 51))
